"""The paper's toy model of superposition (sections 4.2 and 4.3, appendix B), as an experiment and as checked theory.

    toy_model: sparse data ──▶ encoders W, many (S, seed) at once ──▶ geometry
                     └──────────────┬─────────────┘
                                    ▼
                    classifiers: accuracy under label and input noise
                                    │
                    run ──▶ records ┴──▶ tables, encoder_plots, comparison_plots ──▶ figures
    theory/: moments ──▶ crossings, accuracy ──▶ verify (exactly, and by Monte Carlo), comparison_plots

Shapes: B samples of a batch, N of a data set, n features, m dimensions, C = n classes, K encoders (sparsities x
seeds), G groups of classifiers with the same inputs, R label noise rates.
"""
