"""The paper's toy model of superposition (sections 4.2 and 4.3, appendix B), as an experiment and as checked theory.

    toy/: sparse data ──▶ encoders W, many (S, seed) at once ──▶ geometry
                 └────────────┬───────┘
                              ▼
                    run: linear classifiers under label and input noise ──▶ recorded ──▶ tables, figures
    theory/: moments ──▶ criteria ──▶ crossing ──▶ verify (exactly, and by Monte Carlo), figures

Shapes: B samples of a batch, N of a data set, n features, m dimensions, C = n classes, K encoders (sparsities x
seeds), G groups of classifiers with the same inputs, R label noise rates.
"""
