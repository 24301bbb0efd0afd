"""What a linear classifier on a representation can get right: accuracy, where J is only a stand-in for it.

Label noise below 1/2 does not appear here. It scales P(1 | h) - P(0 | h) by 1 - 2 eta and leaves its sign, so the best
threshold and its accuracy on true labels stay what they are; noise costs accuracy only through finite samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

from scipy import integrate, optimize
from scipy.special import ndtr

from monolora.errors import unknown
from monolora.recipes.superposition.theory import arithmetic

Curve = Callable[[float], float]


def best_accuracy(S: float, representation: Literal["mono", "poly"], epsilon: float = 0.0) -> float:
    """Of the best threshold on h, with Gaussian noise on the features.

    For poly, ``h > 0`` is the Bayes rule on both noisy features: nothing that sees them does better.

    Args:
        S: in [0, 1).
        representation: ``"mono"``: the threshold is the best for this noise; ``"poly"``: it is 0, the best for all.
        epsilon: standard deviation of the noise on each feature.

    Raises:
        InputError: for what cannot be.
    """
    S, epsilon = float(arithmetic.sparsity(S)), float(arithmetic.input_noise(epsilon))
    if representation == "poly":
        return _poly(S, epsilon)
    if representation != "mono":
        raise unknown("representation", representation, ("mono", "poly"))
    if epsilon == 0:
        return _mono(S, max(0.0, (0.5 - S) / (1 - S)), 0.0)  # where x1 is as likely the larger as the smaller
    reach, steps = 1 + 8 * epsilon, 64  # a coarse look first: there may be a hill at the zeros and one among the others
    thresholds = [-reach + 2 * reach * step / steps for step in range(steps + 1)]
    best = max(thresholds, key=lambda t: _mono(S, t, epsilon))
    around = (best - 2 * reach / steps, best + 2 * reach / steps)
    found = optimize.minimize_scalar(lambda t: -_mono(S, t, epsilon), bounds=around, method="bounded")
    return -float(found.fun)


def _poly(S: float, epsilon: float) -> float:
    """S²/2 of coins, and |x1 - x2| = u is seen with the right sign: from one feature alone, or from two."""
    q = 1 - S
    rightly = _rightly(epsilon * math.sqrt(2))
    return S**2 / 2 + _integral(lambda u: (2 * S * q + 2 * q**2 * (1 - u)) * rightly(u), epsilon)


def _mono(S: float, t: float, epsilon: float) -> float:
    """``x1 + noise > t`` says 1. The label is 1 with probability S/2 where x1 is 0, and S + q x1 where it is active."""
    q = 1 - S
    above = _rightly(epsilon)
    at_zero = S * (S / 2 * above(-t) + (1 - S / 2) * (1 - above(-t)))
    return at_zero + _integral(
        lambda u: q * ((S + q * u) * above(u - t) + (q - q * u) * (1 - above(u - t))), epsilon, t
    )


def _rightly(epsilon: float) -> Curve:
    """P(u + noise > 0), of u."""
    return (lambda u: float(ndtr(u / epsilon))) if epsilon else (lambda u: float(u > 0))


def _integral(curve: Curve, epsilon: float, kink: float = 0.0) -> float:
    """Over [0, 1]; near ``kink`` the curve turns within a few epsilon."""
    inside = sorted({each for each in (kink - 4 * epsilon, kink, kink + 4 * epsilon) if 0 < each < 1})
    return sum(integrate.quad(curve, low, high)[0] for low, high in pairwise([0.0, *inside, 1.0]))
