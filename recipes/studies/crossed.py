"""Means over training seeds and prompts at once, and how far they may be off.

Every seed answers every prompt: seeds and prompts are crossed, and both are a sample of those that might have been
taken. An interval over prompts alone would be silent about other seeds, one over seeds alone about other prompts.
With random effects of both (z_sp = mean + seed_s + prompt_p + rest_sp) the variance of the mean is

    (MS_seeds + MS_prompts - MS_rest) / (S P)

in the mean squares of the analysis of variance (Searle, Casella and McCulloch, 1992, "Variance Components"), with
degrees of freedom by Satterthwaite (1946). A component below 0 is taken as 0. Three seeds are few: where they
differ much, there are hardly two degrees of freedom, and the interval is as wide as that deserves.

Shapes: S seeds, P prompts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean; NaN where nothing is known.

    Attributes:
        mean: over seeds and prompts.
        low, high: ends of the 95 % t-interval; NaN where all values are the same.
        p: two-sided, of the hypothesis that the mean is 0; NaN likewise.
        seeds, prompts: that it is over.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    prompts: int


def crossed(values_SP: Floats, weights_P: Floats | None = None) -> Estimate:
    """Estimate a mean over seeds and prompts.

    Args:
        values_SP: one row a seed; a prompt with a NaN is left out. With one seed, or one prompt, the interval is over
            the other alone.
        weights_P: how many rows of the set each prompt stands for; 1 if not given.
    """
    there_P = ~np.isnan(values_SP).any(0)
    values_SP = values_SP[:, there_P]
    seeds, prompts = values_SP.shape
    if not prompts:
        return Estimate(np.nan, np.nan, np.nan, np.nan, seeds, 0)
    weights_P = np.ones(prompts) if weights_P is None else weights_P[there_P]
    mean = float((values_SP @ weights_P).mean() / weights_P.sum())
    # linearised: of mean `mean`, and with the variance of the weighted mean
    z_SP = mean + (values_SP - mean) * (weights_P / weights_P.mean())
    error, freedom = _error(z_SP)
    if not error > 0:
        return Estimate(mean, np.nan, np.nan, np.nan, seeds, prompts)
    half = float(stats.t.ppf(0.975, freedom)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Estimate(mean, mean - half, mean + half, p, seeds, prompts)


def _error(z_SP: Floats) -> tuple[float, float]:
    """Standard error of the mean and its degrees of freedom; an error of 0 where nothing varies."""
    seeds, prompts = z_SP.shape
    if min(seeds, prompts) == 1:
        count = max(seeds, prompts)
        return (float(z_SP.std(ddof=1)) / count**0.5 if count > 1 else 0.0), max(count - 1.0, 1.0)
    of_seeds, of_prompts = prompts * z_SP.mean(1).var(ddof=1), seeds * z_SP.mean(0).var(ddof=1)
    rest_SP = z_SP - z_SP.mean(1, keepdims=True) - z_SP.mean(0, keepdims=True) + z_SP.mean()
    freedoms = np.array([seeds - 1, prompts - 1, (seeds - 1) * (prompts - 1)], np.float64)
    rest = float((rest_SP**2).sum() / freedoms[2])
    shares = np.array([of_seeds > rest, of_prompts > rest], np.float64)  # components that are not below 0
    parts = np.array([shares[0] * of_seeds, shares[1] * of_prompts, (1 - shares.sum()) * rest])
    total = float(parts.sum())
    if not total > np.finfo(np.float64).eps * float((z_SP**2).mean()):
        return 0.0, 1.0
    return (total / (seeds * prompts)) ** 0.5, total**2 / float((parts**2 / freedoms).sum())
