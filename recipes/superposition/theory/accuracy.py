"""What a linear classifier on a representation can get right: accuracy, where J is only a stand-in for it.

Label noise below 1/2 does not appear here. It scales P(1 | h) - P(0 | h) by 1 - 2 eta and leaves its sign, so the best
threshold and its accuracy on true labels stay what they are; noise costs accuracy only through finite samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from scipy import integrate, optimize
from scipy.special import ndtr

from monolora.errors import unknown
from monolora.recipes.superposition.theory import moments

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
    S, epsilon = float(moments.sparsity(S)), float(moments.input_noise(epsilon))
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


_CHUNK = 1 << 18  # samples at a time: they stay in the processor's cache


class Noises(NamedTuple):
    """A setting to estimate in.

    Attributes:
        eta: share of wrong labels.
        epsilon: standard deviation of the noise on each feature.
    """

    eta: float
    epsilon: float


class Estimates(NamedTuple):
    """Of the conditional moments, each with its standard error: ``(estimate, error)``."""

    mu1: tuple[float, float]
    mu0: tuple[float, float]
    v1: tuple[float, float]
    v0: tuple[float, float]

    @property
    def spread(self) -> tuple[float, float]:
        """v1 + v0. The two are of different samples, so their errors are independent."""
        return self.v1[0] + self.v0[0], float(np.hypot(self.v1[1], self.v0[1]))


def estimate_moments(
    S: float, weights: Sequence[tuple[float, float]], noises: Sequence[Noises], samples: int, seed: Sequence[int]
) -> Iterator[tuple[tuple[float, float], Noises, Estimates]]:
    """Draw features, labels and noise, and estimate.

    Args:
        S: probability that a feature is 0.
        weights: ``(a, b)`` of each representation h = a x1 + b x2.
        noises: of each estimate; all see the same samples, so their errors are not independent of each other.
        samples: how many.
        seed: the same seed gives the same estimates.
    """
    sums = {(ab, noise): np.zeros((2, 5)) for ab in weights for noise in noises}
    generator = np.random.default_rng(seed)
    for start in range(0, samples, _CHUNK):
        _add(sums, S, generator, min(_CHUNK, samples - start))
    for (ab, noise), power_sums in sums.items():
        (mu0, v0), (mu1, v1) = (_estimates(of_class) for of_class in power_sums)
        yield ab, noise, Estimates(mu1, mu0, v1, v0)


def _add(
    sums: dict[tuple[tuple[float, float], Noises], np.ndarray], S: float, generator: np.random.Generator, count: int
) -> None:
    """Add the powers 0 to 4 of ``count`` new samples' h to the sums of their classes."""
    x1, x2 = generator.random((2, count)) * (generator.random((2, count)) >= S)
    coin = generator.random(count) < 0.5
    y = np.where(x1 == x2, coin, x1 > x2)
    flip = generator.random(count)
    z1, z2 = generator.standard_normal((2, count))
    for ((a, b), noise), power_sums in sums.items():
        seen = y ^ (flip < noise.eta)
        h = a * x1 + b * x2
        if noise.epsilon:
            h += noise.epsilon * (a * z1 + b * z2)
        for label, of_class in enumerate((h[~seen], h[seen])):
            square = of_class * of_class
            power_sums[label] += [
                of_class.size, of_class.sum(), square.sum(), square @ of_class, square @ square
            ]  # fmt: skip


def _estimates(power_sums: Iterable[float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Mean and variance with their standard errors, from the sums of the powers 0 to 4."""
    n, s1, s2, s3, s4 = power_sums
    mean = s1 / n
    variance = s2 / n - mean**2
    fourth = s4 / n - 4 * mean * s3 / n + 6 * mean**2 * s2 / n - 3 * mean**4  # central
    unbiased = variance * n / (n - 1)
    return (mean, (variance / n) ** 0.5), (unbiased, ((fourth - variance**2) / n) ** 0.5)
