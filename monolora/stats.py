"""Estimates with their intervals, tests and corrections: the one source of the project's statistics.

Means over prompts come with the bootstrap (:func:`bootstrap`), means over independent runs with Student's interval
(:func:`estimate`), means over seeds that all answer the same prompts with that of random effects
(:mod:`monolora.random_effects`). All are an :class:`Estimate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95  # of every interval
RESAMPLES = 10_000
SEED = 0
_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
_AT_A_TIME = 2**22  # counts held in memory

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """Ends of a 95 % interval, in the unit of what it is of."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A mean and its uncertainty; None where that is unknown.

    Attributes:
        mean: of the values that are present.
        low: lower end of the 95 % interval; None where all values are equal or only one exists.
        high: its upper end; likewise.
        p: two-sided, of the hypothesis that the mean is 0; None likewise.
        error: standard error of the mean; 0 where all values are the same.
        freedom: degrees of freedom of the error.
        seeds: independent runs, as training seeds or pretrained encoders.
        draws: values of each run, as prompts or draws of labels; the fewest, where they differ.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    error: float | None = None
    freedom: float | None = None
    seeds: int = 1
    draws: int = 1

    @property
    def interval(self) -> Interval | None:
        """Both ends, or None where there is no interval."""
        return None if self.low is None or self.high is None else Interval(self.low, self.high)

    @property
    def half_width(self) -> float | None:
        """Of the interval."""
        return None if self.high is None else self.high - self.mean

    @property
    def n(self) -> int:
        """The number of values under an interval, which are runs, or draws of a single run."""
        return self.seeds if self.seeds > 1 else self.draws

    def times(self, factor: float) -> Estimate:
        """In another unit."""
        low, high, error = (None if end is None else end * factor for end in (self.low, self.high, self.error))
        return self._replace(mean=self.mean * factor, low=low, high=high, error=error)

    def with_error(self, error: float, freedom: float) -> Estimate:
        """The same mean with Student's interval and test of a standard error that is not 0."""
        half = float(stats.t.ppf(_TAILS[1], freedom)) * error
        p = 2 * float(stats.t.sf(abs(self.mean) / error, freedom))
        return self._replace(low=self.mean - half, high=self.mean + half, p=p, error=error, freedom=freedom)


BySeed = Mapping[int, Sequence[float]]
"""By pretraining seed, the value of each draw on that encoder."""


def estimate(values: BySeed) -> Estimate | None:
    """The mean over independent runs, with Student's interval; None if there are no runs.

    Draws on one encoder are not independent of each other as encoders are: where there are several encoders, each
    counts once, with its mean. Draws that all gave the same number, as without wrong labels, are one run: they show no
    spread.
    """
    runs = [list(draws) if len(set(draws)) > 1 else draws[:1] for draws in values.values() if draws]
    if not runs:
        return None
    counted = [fmean(draws) for draws in runs] if len(runs) > 1 else runs[0]
    mean = Estimate(fmean(counted), seeds=len(runs), draws=min(map(len, runs)))
    if len(counted) == 1:
        return mean
    error, freedom = stdev(counted) / len(counted) ** 0.5, len(counted) - 1.0
    if not error:  # encoders that agree
        return mean._replace(low=mean.mean, high=mean.mean, error=0.0, freedom=freedom)
    return mean.with_error(error, freedom)


def difference(values: BySeed, baseline: BySeed) -> Estimate | None:
    """The mean of ``values - baseline`` over the runs that both have, paired by seed and draw."""
    return estimate(
        {
            seed: [ours - theirs for ours, theirs in zip(draws, baseline[seed], strict=False)]
            for seed, draws in values.items()
            if seed in baseline
        }
    )


def bootstrap(
    values_KP: Floats, weights_P: Floats, resamples: int = RESAMPLES, seed: int = SEED
) -> list[Estimate | None]:
    """Estimate weighted means, row by row; None for rows without a value.

    NaN values are missing and left out of numerator and denominator. The p-value (:func:`p_of_zero`) is never below
    what a test of signs can reach: where n prompts differ from 0, all of the same sign, chance does so with 2 / 2^n.
    Rows whose values are all the same have no interval, as every resample is a copy of them.

    Args:
        values_KP: shape ``(K, P)``.
        weights_P: how many rows each prompt stands for, shape ``(P,)``.
        resamples: how many.
        seed: of the draws; the same seed and number of prompts give the same draws.
    """
    valid_KP = ~np.isnan(values_KP)
    means_KR = resampled_means(values_KP, weights_P, resamples, seed)
    low_K, high_K = percentile_ends(means_KR)
    same_K = _all_the_same(values_KP, valid_KP)
    with np.errstate(invalid="ignore"):
        mean_K = np.where(valid_KP, values_KP, 0.0) @ weights_P / (valid_KP @ weights_P)
    p_K = np.maximum(p_of_zero(means_KR), 2.0 ** (1 - ((values_KP != 0) & valid_KP).sum(1)))
    rows = zip(mean_K, low_K, high_K, np.minimum(p_K, 1.0), same_K, valid_KP.sum(1), strict=True)
    return [
        Estimate(float(mean), None if same else float(low), None if same else float(high), float(p), draws=int(n))
        if n
        else None
        for mean, low, high, p, same, n in rows
    ]


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


def resampled_estimate(value_R: Floats) -> Estimate | None:
    """The estimate of a statistic, with interval and p-value from its values on resamples.

    Args:
        value_R: on the sample, then on its resamples; NaN where it has no value.

    Returns:
        None where it has none on the sample.
    """
    value, resampled_1R = float(value_R[0]), value_R[None, 1:]
    if np.isnan(value):
        return None
    low, high = percentile_ends(resampled_1R)[:, 0]
    return Estimate(value, float(low), float(high), float(min(1.0, p_of_zero(resampled_1R)[0])))


def _draw(random: np.random.Generator, times: int, prompts: int) -> Floats:
    """Counts of P prompts in resamples of P with replacement, shape ``(C, P)``."""
    drawn = random.integers(prompts, size=(times, prompts))
    drawn += np.arange(times)[:, None] * prompts
    return np.bincount(drawn.ravel(), minlength=times * prompts).reshape(times, prompts).astype(np.float64)


def percentile_ends(means_KR: Floats) -> Floats:
    """Ends of the 95 % interval of each row of resampled means, NaN left out; shape ``(2, K)``, NaN for rows of NaN."""
    ends = np.quantile(means_KR, _TAILS, axis=1)
    for k in np.flatnonzero(np.isnan(ends[0])):
        present = means_KR[k][~np.isnan(means_KR[k])]
        if present.size:
            ends[:, k] = np.quantile(present, _TAILS)
    return ends


def _all_the_same(values_KP: Floats, valid_KP: NDArray[np.bool_]) -> NDArray[np.bool_]:
    largest = np.where(valid_KP, values_KP, -np.inf).max(1)
    smallest = np.where(valid_KP, values_KP, np.inf).min(1)
    return largest <= smallest


def p_of_zero(means_KR: Floats) -> Floats:
    """The two-sided p-value of 0 of each row of resampled means, which inverts the interval; shape ``(K,)``.

    Twice the smaller share of resamples on one side of 0, the sample itself counted among them. It may be above 1.
    """
    one_side = np.minimum((means_KR <= 0).sum(1), (means_KR >= 0).sum(1))
    return 2 * (1 + one_side) / (1 + (~np.isnan(means_KR)).sum(1))


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p-value of McNemar's test.

    Args:
        gained: prompts that only the first of two models has the flag on.
        lost: prompts that only the second has it on.
    """
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def wilson(count: int, n: int) -> Interval:
    """Wilson's 95 % interval of a share, from 0 to 1.

    It stands in for the bootstrap where all of n flags are the same: every resample is then a copy of the sample, and
    an interval of no width would claim that 0 of 20 is known as well as 0 of 20,000.
    """
    ends = stats.binomtest(count, n).proportion_ci(LEVEL, method="wilson")
    return Interval(float(ends.low), float(ends.high))


def kappa(a: NDArray[np.bool_], b: NDArray[np.bool_], weights: NDArray[np.float64]) -> float | None:
    """Cohen's kappa of two judges' flags.

    Args:
        a: flags of the one judge, shape ``(N,)``.
        b: flags of the other on the same responses.
        weights: how many rows each response stands for.

    Returns:
        1 for full agreement, 0 for chance level; None without responses, or where both judges gave all of them the same
        flag, which says nothing about how they would differ.
    """
    from sklearn.metrics import cohen_kappa_score  # takes a second; most commands do not need it

    if not weights.any() or (a.all() and b.all()) or not (a.any() or b.any()):
        return None
    return float(cohen_kappa_score(a, b, sample_weight=weights))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected by Holm's step-down method (1979), which controls the chance of any false finding.

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
        p: of all tests, any shape; NaN for a test that could not be made, which does not count.

    Returns:
        ``float64``, of the same shape; NaN where ``p`` is.
    """
    p_values = np.asarray(p, dtype=np.float64)
    q_values = np.full(p_values.shape, np.nan)
    is_tested = ~np.isnan(p_values)
    q_values[is_tested] = stats.false_discovery_control(p_values[is_tested])
    return q_values
