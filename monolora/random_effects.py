"""Means over training seeds and prompts at once, and how far they may be off.

Every seed answers every prompt: seeds and prompts are crossed, and both are a sample of those that might have been
taken. An interval over prompts alone would be silent about other seeds, one over seeds alone about other prompts.
With random effects of both (z_sp = mean + seed_s + prompt_p + rest_sp) the variance of the mean is

    V_seeds / S + MS_prompts / (S P),    V_seeds = (MS_seeds - MS_rest) / P

in the mean squares of the analysis of variance (Searle, Casella and McCulloch, 1992, "Variance Components"), with
degrees of freedom by Satterthwaite (1946). A component below 0 is taken as 0.

Three seeds are few: by luck they may be alike, and an interval that believed them would claim too much. So a model's
seeds are never taken to differ less than those of all models of the study do on average (:func:`seed_effects`), where
there are prompts to tell them from the rest.

Shapes: S seeds, P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from monolora.stats import LEVEL, Estimate

Floats = NDArray[np.float64]


class SeedEffects(NamedTuple):
    """How much seeds differ.

    Attributes:
        variance: of the effects of seeds.
        uncertainty: of that: the square over its degrees of freedom, as Satterthwaite adds them up.
    """

    variance: float
    uncertainty: float


NO_SEED_EFFECTS = SeedEffects(0.0, 0.0)


def crossed(
    values_SP: Floats, weights_P: Floats | None = None, seeds_differ: SeedEffects = NO_SEED_EFFECTS
) -> Estimate | None:
    """Estimate a mean over seeds and prompts, with a t-interval; None where no prompt has a value for every seed.

    Args:
        values_SP: one row a seed; a prompt with a NaN is left out. With one seed, or one prompt, the interval is over
            the other alone.
        weights_P: how many rows of the set each prompt stands for; 1 if not given.
        seeds_differ: at least so much, whatever these seeds say; with one prompt they alone are asked.
    """
    mean, z_SP = _linearised(values_SP, weights_P)
    seeds, prompts = z_SP.shape
    if not prompts:
        return None
    error, freedom = _error(z_SP, seeds_differ)
    estimate = Estimate(mean, seeds=seeds, draws=prompts)
    return estimate.with_error(error, freedom) if error > 0 else estimate._replace(error=0.0, freedom=np.inf)


def seed_effects(
    tables: Sequence[Floats], weights_P: Floats | None = None, independent: float | None = None
) -> SeedEffects:
    """How much seeds differ on average over several tables of as many seeds and prompts.

    Args:
        tables: of values, each ``(S, P)``, as :func:`crossed` takes them.
        weights_P: likewise.
        independent: as how many tables these count: the differences of A models among each other as A - 1. All by
            default.
    """
    squares = [_seeds_and_rest(_linearised(table, weights_P)[1]) for table in tables]
    effects = [(seeds, rest, freedoms) for seeds, rest, freedoms in squares if min(freedoms) >= 1]
    if not effects:
        return NO_SEED_EFFECTS
    count = len(effects)
    variance = sum(of_seeds - rest for of_seeds, rest, _ in effects) / count
    uncertainty = sum(
        of_seeds**2 / freedoms[0] + rest**2 / (freedoms[0] * freedoms[1]) for of_seeds, rest, freedoms in effects
    )
    return SeedEffects(max(variance, 0.0), uncertainty / (count * (independent or count)))


def _linearised(values_SP: Floats, weights_P: Floats | None) -> tuple[float, Floats]:
    """The weighted mean, and values with the same mean whose plain mean has its variance; without missing prompts."""
    present_P = ~np.isnan(values_SP).any(0)
    values_SP = values_SP[:, present_P]
    if not present_P.any():
        return np.nan, values_SP
    weights_P = np.ones(values_SP.shape[1]) if weights_P is None else weights_P[present_P]
    mean = float((values_SP @ weights_P).mean() / weights_P.sum())
    return mean, mean + (values_SP - mean) * (weights_P / weights_P.mean())


def _seeds_and_rest(z_SP: Floats) -> tuple[float, float, tuple[int, int]]:
    """Mean squares of seeds and of the rest over P, and the degrees of freedom of seeds and prompts."""
    seeds, prompts = z_SP.shape
    if min(seeds, prompts) < 2:
        return 0.0, 0.0, (seeds - 1, prompts - 1)
    rest_SP = z_SP - z_SP.mean(1, keepdims=True) - z_SP.mean(0, keepdims=True) + z_SP.mean()
    rest = float((rest_SP**2).sum()) / ((seeds - 1) * (prompts - 1))
    return float(z_SP.mean(1).var(ddof=1)), rest / prompts, (seeds - 1, prompts - 1)


def _error(z_SP: Floats, seeds_differ: SeedEffects) -> tuple[float, float]:
    """Standard error of the mean and its degrees of freedom; an error of 0 where nothing varies."""
    seeds, prompts = z_SP.shape
    if min(seeds, prompts) == 1:
        count = max(seeds, prompts)
        return (float(z_SP.std(ddof=1)) / count**0.5 if count > 1 else 0.0), max(count - 1.0, 1.0)
    _, rest, _ = _seeds_and_rest(z_SP)
    own = seed_effects([z_SP])
    effects = own if own.variance >= seeds_differ.variance else seeds_differ
    of_prompts = max(seeds * float(z_SP.mean(0).var(ddof=1)) / prompts, rest)
    total = effects.variance + of_prompts
    if not total > np.finfo(np.float64).eps * float((z_SP**2).mean()) / prompts:
        return 0.0, np.inf
    freedom = total**2 / (effects.uncertainty + of_prompts**2 / (prompts - 1))
    return (total / seeds) ** 0.5, max(freedom, seeds - 1.0)  # of a difference of mean squares it may come out lower


_UPPER = (1 + LEVEL) / 2
_ROUNDING = 1e-9  # shares are means of weighted flags, and may miss 0 and 1 by as much


def of_share(estimate: Estimate) -> Estimate:
    """A share's interval.

    Args:
        estimate: its mean in percent, with its standard error.

    Returns:
        The same with a score interval, never narrower on a side than if no flag, or all, had been seen; without a
        p-value, as no share is asked whether it is 0.
    """
    assert estimate.error is not None
    share, error, prompts = estimate.mean / 100, estimate.error / 100, estimate.draws
    varies = _ROUNDING < share < 1 - _ROUNDING and error > _ROUNDING
    count = share * (1 - share) / error**2 if varies else prompts
    quantile = float(stats.t.ppf(_UPPER, estimate.freedom if varies else np.inf))
    low, high = _score(share, float(np.clip(count, 1, estimate.seeds * prompts)), quantile)
    none = _score(0.0, prompts, float(stats.norm.ppf(_UPPER)))[1]
    return estimate._replace(low=100 * min(low, 1 - none), high=100 * max(high, none), p=None)


def of_difference(estimate: Estimate) -> Estimate:
    """The interval of a paired difference of two shares, in points."""
    assert estimate.error is not None
    assert estimate.freedom is not None
    added = 100 / estimate.draws  # one more prompt, of the other flag
    error = float(np.hypot(estimate.error, added))
    # degrees of freedom as Satterthwaite adds them up
    uncertainty = estimate.error**4 / estimate.freedom + added**4 / max(estimate.draws - 1, 1)
    wider = estimate.with_error(error, error**4 / uncertainty)
    assert wider.interval is not None
    low, high = wider.interval
    return wider._replace(low=max(low, -100.0), high=min(high, 100.0))


def _score(share: float, count: float, quantile: float) -> tuple[float, float]:
    """Where the true share can be, whose own standard error at ``count`` is within the quantile of the measured one."""
    squared = quantile**2 / count
    middle = (share + squared / 2) / (1 + squared)
    half = (share * (1 - share) * squared + squared**2 / 4) ** 0.5 / (1 + squared)
    return max(middle - half, 0.0), min(middle + half, 1.0)
