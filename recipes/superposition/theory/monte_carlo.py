"""The same moments from random samples, with standard errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

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
