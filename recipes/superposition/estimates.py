"""The statistics of tables and figures: means over seeds in %, leads of mono in points, and who is ahead.

Intervals are 95 % t-intervals over seeds, each of which has its own encoder, data and noise. Leads are paired by seed:
both encoders of a seed see the same data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev

from scipy import stats

from monolora.recipes.experiments.intervals import Estimate, difference, estimate
from monolora.recipes.superposition.settings import MONO, POLY

_TYPICAL_SCALE = 0.5


def mean(values: Sequence[float]) -> Estimate:
    """Over seeds, one value each."""
    found = estimate(_by_seed(values))
    assert found is not None  # there is a seed
    return found


def percent(shares: Sequence[float]) -> Estimate:
    """The mean of shares from 0 to 1, in %."""
    return mean(shares).times(100)


def lead(mono: Sequence[float], poly: Sequence[float]) -> Estimate:
    """By how many percentage points mono is ahead of poly; shares from 0 to 1, in the order of seeds."""
    found = difference(_by_seed(mono), _by_seed(poly))
    assert found is not None
    return found.times(100)


def ahead(of: Estimate) -> str | None:
    """MONO or POLY by a lead, or None where the interval has 0 in it, or there is none."""
    if of.low is None or of.high is None or of.low <= 0 <= of.high:
        return None
    return MONO if of.low > 0 else POLY


def paired_p(mono: Sequence[float], poly: Sequence[float]) -> float | None:
    """Of the paired t-test, two-sided; None for one seed. Leads that are all the same have no spread to test with."""
    leads = [one - other for one, other in zip(mono, poly, strict=True)]
    if len(leads) < 2:
        return None
    spread, middle = stdev(leads), fmean(leads)
    if spread == 0:
        return float(middle == 0)
    return float(2 * stats.t.sf(abs(middle) / spread * math.sqrt(len(leads)), len(leads) - 1))


def shown_scale(scales: Iterable[float]) -> float | None:
    """The scale of input noise above 0 that is shown where there is room for one: the nearest to 0.5."""
    return min((each for each in scales if each > 0), key=lambda each: (abs(each - _TYPICAL_SCALE), each), default=None)


def _by_seed(values: Sequence[float]) -> dict[int, list[float]]:
    return {seed: [float(value)] for seed, value in enumerate(values)}
