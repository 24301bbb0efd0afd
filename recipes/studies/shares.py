"""Intervals of shares of flags: Student's is wrong where flags are rare, and has no width where they are all the same.

A share has Wilson's (1927) score interval at the number of independent prompts that its standard error amounts to, as
in surveys of clusters (Korn and Graubard 1998, "Confidence intervals for proportions with small expected number of
positive counts estimated from survey data"). A paired difference has one more prompt in its variance on which the two
models disagree (after Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions").
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from monolora.recipes.studies.crossed import Estimate, with_error

_ROUNDING = 1e-9  # shares are means of weighted flags, and may miss 0 and 1 by as much


def of_share(found: Estimate) -> Estimate:
    """A share's interval.

    Args:
        found: its mean in percent, with its standard error.

    Returns:
        The same with a score interval, never narrower on a side than if no flag, or all, had been seen; without a
        p-value, as no share is asked whether it is 0.
    """
    share, error = found.mean / 100, found.error / 100
    varies = _ROUNDING < share < 1 - _ROUNDING and error > _ROUNDING
    count = share * (1 - share) / error**2 if varies else found.prompts
    quantile = float(stats.t.ppf(0.975, found.freedom if varies else np.inf))
    low, high = _score(share, float(np.clip(count, 1, found.seeds * found.prompts)), quantile)
    none = _score(0.0, found.prompts, float(stats.norm.ppf(0.975)))[1]
    return found._replace(low=100 * min(low, 1 - none), high=100 * max(high, none), p=np.nan)


def of_difference(found: Estimate) -> Estimate:
    """The interval of a paired difference of two shares, in points."""
    added = 100 / found.prompts
    error = float(np.hypot(found.error, added))
    uncertainty = found.error**4 / found.freedom + added**4 / max(found.prompts - 1, 1)  # as Satterthwaite adds them up
    wider = with_error(found, error, error**4 / uncertainty)
    return wider._replace(low=max(wider.low, -100.0), high=min(wider.high, 100.0))


def _score(share: float, count: float, quantile: float) -> tuple[float, float]:
    """Where the true share can be, whose own standard error at ``count`` is within the quantile of the measured one."""
    squared = quantile**2 / count
    middle = (share + squared / 2) / (1 + squared)
    half = (share * (1 - share) * squared + squared**2 / 4) ** 0.5 / (1 + squared)
    return max(middle - half, 0.0), min(middle + half, 1.0)
