"""The paper's vision experiments (sections 3.1, 3.2 and 4.1, appendices A.1, A.2, A.4 and C): one program a step.

    images ──▶ pretrain ──▶ encoder ──▶ features ──▶ sae ──▶ latents
                               │            └─────┬────────────┘
                               ▼                  ▼
                           finetune             probe ──▶ consistency
                               └────▶ results  ◀──┴───────────┘
                                         │
                                  table1, figures

Shapes: B images of a batch, N of a data set, D dimensions of a representation, C classes, M classifiers trained at
once, S pixels a side.
"""
