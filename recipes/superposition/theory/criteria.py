"""What "linearly separable" may mean: the criteria J that theorem 4.2 could have used.

The paper asks for a large distance between the classes and a small variance within them, after Fisher (1936), and its
formula for J is lost. These are the usual ways to say it in one number. They do not agree, so J is always named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from monolora.errors import unknown
from monolora.recipes.superposition.theory.arithmetic import Number, Representation
from monolora.recipes.superposition.theory.moments import noisy_moments


class Criterion(NamedTuple):
    """A way to say in one number how separable two classes are; larger is better.

    Attributes:
        formula: in words.
        value: of the gap and the two variances.
        scale_free: whether c h has the same J as h. A linear classifier does not care for c; a J that does can put
            representations in any order by their units.
    """

    formula: str
    value: Callable[[Number, Number, Number], Number]
    scale_free: bool


CRITERIA: Mapping[str, Criterion] = {
    "fisher": Criterion("gap² / (v1 + v0)", lambda gap, v1, v0: gap**2 / (v1 + v0), True),
    "fisher-geometric": Criterion("gap⁴ / (v1 v0)", lambda gap, v1, v0: gap**4 / (v1 * v0), True),
    "ratio": Criterion("gap / (v1 + v0)", lambda gap, v1, v0: gap / (v1 + v0), False),
    "difference": Criterion("gap - (v1 + v0)", lambda gap, v1, v0: gap - (v1 + v0), False),
    "squared-difference": Criterion("gap² - (v1 + v0) / 2", lambda gap, v1, v0: gap**2 - (v1 + v0) / 2, False),
    "maximum-margin": Criterion("gap² / 4 - (v1 + v0) / 2", lambda gap, v1, v0: gap**2 / 4 - (v1 + v0) / 2, False),
    "product": Criterion("gap / (v1 v0)", lambda gap, v1, v0: gap / (v1 * v0), False),
    "squared-product": Criterion("gap² / (v1 v0)", lambda gap, v1, v0: gap**2 / (v1 * v0), False),
}


def criterion_of(name: str) -> Criterion:
    """By its name in CRITERIA.

    Raises:
        InputError: for another name.
    """
    if name not in CRITERIA:
        raise unknown("criterion", name, CRITERIA)
    return CRITERIA[name]


def separability(
    S: Number, representation: Representation, criterion: str, eta: Number = 0, epsilon: Number = 0
) -> Number:
    """J of a representation (theorems 4.2, B.9).

    Args:
        S: probability that a feature is 0, in [0, 1).
        representation: ``"mono"``, ``"poly"``, or weights.
        criterion: a name in CRITERIA.
        eta: share of wrong labels, in [0, 1]; above 1/2 the classes have swapped, and the gap is negative.
        epsilon: standard deviation of Gaussian noise on each feature.

    Raises:
        InputError: for what cannot be.
    """
    moments = noisy_moments(S, representation, eta, epsilon)
    return criterion_of(criterion).value(moments.gap, moments.v1, moments.v0)
