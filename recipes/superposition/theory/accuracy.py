"""How often the best linear classifier on a representation is right: the accuracy that J only stands in for.

Label noise below 1/2 does not appear here. It scales P(1 | h) - P(0 | h) by 1 - 2 eta and keeps its sign, so the best
threshold and its accuracy on true labels stay the same; label noise costs accuracy only through finite samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

from scipy import integrate, optimize
from scipy.special import ndtr

from monolora.errors import unknown
from monolora.recipes.superposition.theory.moments import input_noise, sparsity

Curve = Callable[[float], float]


def best_accuracy(S: float, representation: Literal["mono", "poly"], epsilon: float = 0.0) -> float:
    """The accuracy of the best threshold on h, with Gaussian noise on the features.

    For poly, ``h > 0`` is the Bayes rule on both noisy features: no classifier that sees them is more accurate.

    Args:
        S: in [0, 1).
        representation: ``"mono"``, whose best threshold depends on the noise, or ``"poly"``, whose best one is 0.
        epsilon: standard deviation of the noise on each feature.

    Raises:
        InputError: for arguments out of range.
    """
    S, epsilon = float(sparsity(S)), float(input_noise(epsilon))
    if representation == "poly":
        return _poly(S, epsilon)
    if representation != "mono":
        raise unknown("representation", representation, ("mono", "poly"))
    if epsilon == 0:
        return _mono(S, max(0.0, (0.5 - S) / (1 - S)), 0.0)  # where x1 is the larger with probability 1/2
    # A coarse grid first: the accuracy may have one maximum near h = 0, where the zeros are, and another above.
    reach, steps = 1 + 8 * epsilon, 64
    thresholds = [-reach + 2 * reach * step / steps for step in range(steps + 1)]
    best = max(thresholds, key=lambda t: _mono(S, t, epsilon))
    bounds = (best - 2 * reach / steps, best + 2 * reach / steps)
    optimum = optimize.minimize_scalar(lambda t: -_mono(S, t, epsilon), bounds=bounds, method="bounded")
    return -float(optimum.fun)


def _poly(S: float, epsilon: float) -> float:
    """S²/2 from coins; else the density of u = |x1 - x2|, of one or two active features, times P(right sign | u)."""
    q = 1 - S
    positive = _positive(epsilon * math.sqrt(2))
    return S**2 / 2 + _integral(lambda u: (2 * S * q + 2 * q**2 * (1 - u)) * positive(u), epsilon)


def _mono(S: float, t: float, epsilon: float) -> float:
    """``x1 + noise > t`` says 1. The label is 1 with probability S/2 where x1 is 0, and S + q x1 where it is active."""
    q = 1 - S
    above = _positive(epsilon)
    at_zero = S * (S / 2 * above(-t) + (1 - S / 2) * (1 - above(-t)))
    return at_zero + _integral(
        lambda u: q * ((S + q * u) * above(u - t) + (q - q * u) * (1 - above(u - t))), epsilon, t
    )


def _positive(epsilon: float) -> Curve:
    """P(u + noise > 0) as a function of u."""
    return (lambda u: float(ndtr(u / epsilon))) if epsilon else (lambda u: float(u > 0))


def _integral(curve: Curve, epsilon: float, kink: float = 0.0) -> float:
    """The integral over [0, 1], in pieces: near ``kink`` the curve turns within a few epsilon."""
    edges = sorted({edge for edge in (kink - 4 * epsilon, kink, kink + 4 * epsilon) if 0 < edge < 1})
    return sum(integrate.quad(curve, low, high)[0] for low, high in pairwise([0.0, *edges, 1.0]))
