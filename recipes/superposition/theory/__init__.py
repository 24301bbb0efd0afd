"""The theory of section 4.3 and appendix B for two features, in exact numbers or floats.

    moments ──▶ criteria ──▶ crossover          closed forms, what is made of them, where mono and poly swap places
    joint, monte_carlo                          the same moments by two other ways, to check them against
    accuracy                                    what the best threshold on a feature gets right
"""
