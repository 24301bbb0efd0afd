"""The theory of section 4.3 and appendix B for two features, in exact numbers or floats.

    moments      means and variances of a representation: closed forms, integrals, random samples
    crossings    the criteria J of separability, and where mono and poly swap places
    accuracy     how often the best threshold on a representation is right

Two features x1, x2: each is 0 with probability S, else uniform on [0, 1]. The label is 1 where x1 > x2, 0 where
x1 < x2, and a fair coin where both are 0. A representation is one number h = a x1 + b x2: the paper's monosemantic one
is x1, its polysemantic one, an antipodal pair, x1 - x2.
"""

from monolora.recipes.superposition.theory.crossings import (
    CRITERIA,
    Crossover,
    Verdict,
    crossover,
    separability,
    verdicts,
)
from monolora.recipes.superposition.theory.moments import (
    Moments,
    conditional_moments,
    under_input_noise,
    under_label_noise,
)

__all__ = [
    "CRITERIA",
    "Crossover",
    "Moments",
    "Verdict",
    "conditional_moments",
    "crossover",
    "separability",
    "under_input_noise",
    "under_label_noise",
    "verdicts",
]
