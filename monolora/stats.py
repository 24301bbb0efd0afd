"""Intervals, tests and corrections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, false_discovery_control

RESAMPLES = 10_000
SEED = 0
_TAILS = (0.025, 0.975)
_AT_A_TIME = 2**22  # counts held in memory

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """What the bootstrap says of each row of values, shape ``(K,)`` each; NaN where it can say nothing.

    Attributes:
        mean: weighted means of the values that are there.
        low, high: ends of the 95 % interval; NaN where all values are the same, of which every resample is a copy.
        p: two-sided, of the hypothesis that the mean is 0; never 0.
    """

    mean: Floats
    low: Floats
    high: Floats
    p: Floats


def bootstrap(values_KP: Floats, weights_P: Floats, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """Estimate weighted means; NaN values are missing and left out of numerator and denominator.

    The p-value inverts the interval: twice the smaller share of resamples on one side of 0, the sample itself counted
    among them. It is never below what a test of signs can reach: where n prompts differ from 0, all of the same sign,
    chance does so with 2 / 2^n.

    Args:
        values_KP: shape ``(K, P)``.
        weights_P: how many rows each prompt stands for, shape ``(P,)``.
        resamples: how many.
        seed: of the draws; the same seed and number of prompts give the same draws.
    """
    valid_KP = ~np.isnan(values_KP)
    means_KR = resampled_means(values_KP, weights_P, resamples, seed)
    low_K, high_K = _ends(means_KR)
    same_K = _all_the_same(values_KP, valid_KP)
    with np.errstate(invalid="ignore"):
        weight_K = valid_KP @ weights_P
        mean_K = np.where(valid_KP, values_KP, 0.0) @ weights_P / weight_K
    p_K = np.maximum(_p_of_zero(means_KR), 2.0 ** (1 - ((values_KP != 0) & valid_KP).sum(1)))
    return Estimate(
        mean_K,
        np.where(same_K, np.nan, low_K),
        np.where(same_K, np.nan, high_K),
        np.where(valid_KP.any(1), np.minimum(p_K, 1.0), np.nan),
    )


def resampled_means(values_KP: Floats, weights_P: Floats, resamples: int = RESAMPLES, seed: int = SEED) -> Floats:
    """Weighted means of resampled prompts, shape ``(K, R)``; NaN where a resample has no value."""
    valid_KP = ~np.isnan(values_KP)
    weighted_KP = np.where(valid_KP, values_KP, 0.0) * weights_P
    masks_UP, mask_K = np.unique(valid_KP, axis=0, return_inverse=True)
    weights_UP = masks_UP * weights_P
    random = np.random.default_rng(seed)
    means_KR = np.empty((len(values_KP), resamples))
    step = max(1, _AT_A_TIME // len(weights_P))
    for start in range(0, resamples, step):
        at = slice(start, min(start + step, resamples))
        counts_CP = _draw(random, at.stop - at.start, len(weights_P))
        with np.errstate(invalid="ignore"):
            means_KR[:, at] = (weighted_KP @ counts_CP.T) / (weights_UP @ counts_CP.T)[mask_K]
    return means_KR


def _draw(random: np.random.Generator, times: int, prompts: int) -> Floats:
    """How often each of P prompts comes when P are drawn with replacement: multinomial counts, shape ``(C, P)``."""
    drawn = random.integers(prompts, size=(times, prompts))
    drawn += np.arange(times)[:, None] * prompts
    return np.bincount(drawn.ravel(), minlength=times * prompts).reshape(times, prompts).astype(np.float64)


def _ends(means_KR: Floats) -> Floats:
    """Percentiles of each row, NaN left out; shape ``(2, K)``, NaN for rows of nothing else."""
    ends = np.quantile(means_KR, _TAILS, axis=1)
    for k in np.flatnonzero(np.isnan(ends[0])):
        there = means_KR[k][~np.isnan(means_KR[k])]
        if there.size:
            ends[:, k] = np.quantile(there, _TAILS)
    return ends


def _all_the_same(values_KP: Floats, valid_KP: NDArray[np.bool_]) -> NDArray[np.bool_]:
    largest = np.where(valid_KP, values_KP, -np.inf).max(1)
    smallest = np.where(valid_KP, values_KP, np.inf).min(1)
    return largest <= smallest


def _p_of_zero(means_KR: Floats) -> Floats:
    one_side = np.minimum((means_KR <= 0).sum(1), (means_KR >= 0).sum(1))
    return 2 * (1 + one_side) / (1 + (~np.isnan(means_KR)).sum(1))


class Interval(NamedTuple):
    """Ends of a 95 % interval, in the unit of what it is of."""

    low: float
    high: float


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p-value of McNemar's test.

    Args:
        gained: prompts that only the first of two models has the flag on.
        lost: prompts that only the second has it on.
    """
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def wilson(count: int, n: int) -> Interval:
    """Wilson's 95 % interval of a share, from 0 to 1.

    It stands in for the bootstrap where all of n flags are the same: every resample is then a copy of the sample, and
    an interval of no width would claim that 0 of 20 is known as well as 0 of 20,000.
    """
    found = binomtest(count, n).proportion_ci(method="wilson")
    return Interval(float(found.low), float(found.high))


def kappa(a: NDArray[np.bool_], b: NDArray[np.bool_], weights: NDArray[np.float64]) -> float | None:
    """Cohen's kappa of two judges' flags.

    Args:
        a: flags of the one judge, shape ``(N,)``.
        b: flags of the other on the same responses.
        weights: how many rows each response stands for.

    Returns:
        1 for full agreement, 0 for what chance gives. None where chance alone agrees always: no responses, or both
        judges gave all of them the same flag. Nothing is known then about how they would differ.
    """
    total = weights.sum()
    if not total:
        return None
    share_a, share_b = weights @ a / total, weights @ b / total
    by_chance = share_a * share_b + (1 - share_a) * (1 - share_b)
    if by_chance == 1:
        return None
    return float((weights @ (a == b) / total - by_chance) / (1 - by_chance))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected by Holm's step-down method (1979): the chance of even one false finding stays below them.

    Args:
        p_values: of the whole family of tests.
    """
    n = len(p_values)
    corrected = [1.0] * n
    largest = 0.0
    for rank, k in enumerate(sorted(range(n), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (n - rank) * p_values[k]))
        corrected[k] = largest
    return corrected


def false_discovery_rate(p: ArrayLike) -> NDArray[np.float64]:
    """Q-values of Benjamini and Hochberg (1995): of the tests with ``q <= 0.05``, 5 % are false on average.

    It holds for independent tests and for ones that depend on each other positively, as those of units that fire on
    the same texts mostly do. For the chance of even one false finding see :func:`monolora.stats.holm`.

    Args:
        p: of all tests that were made, any shape; NaN stands for a test that could not be made and does not count.

    Returns:
        ``float64``, of the same shape; NaN where ``p`` is.
    """
    p_values = np.asarray(p, dtype=np.float64)
    q_values = np.full(p_values.shape, np.nan)
    made = ~np.isnan(p_values)
    q_values[made] = false_discovery_control(p_values[made])
    return q_values
