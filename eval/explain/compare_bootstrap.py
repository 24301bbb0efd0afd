"""Means over units, and their differences between adapters, by a cluster bootstrap over adapted modules.

Units of a module share its input and were trained side by side: they are not independent observations. What is drawn
is therefore the module, with all of its units, and one that an adapter has more units in weighs more. All adapters
share the draws, so that two adapters of the same modules are compared module by module; a module that an adapter has
not, or has no unit with a value in, adds nothing to its mean. Intervals are 95 % percentile intervals.

They cover which modules, of ones like these, an adapter has: how far the means are those of these modules only. They
do not cover other texts or another training run (seed, order of the data) of the adapters. With fewer than some twenty
modules they are too narrow.

Shapes: K rows (a measure of an adapter), P modules, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolora.eval.explain.compare_measures import Values
from monolora.eval.explain.compare_records import Mean
from monolora.eval.measures.bootstrap import RESAMPLES, SEED, resampled_means

Floats = NDArray[np.float64]


class Change(NamedTuple):
    """A difference of two means with its 95 % interval, its two-sided p-value and how many modules it is paired in."""

    value: float
    low: float
    high: float
    p: float
    pairs: int


class Clustered(NamedTuple):
    """Rows of values by module, and their means over resampled modules.

    Attributes:
        mean_KP: means of the values in each module; NaN where there is none.
        weight_KP: how many values that is of.
        resampled_KR: means over units in each resample; NaN where it has no value.
        total_K: how many values there are, NaN among them.
    """

    mean_KP: Floats
    weight_KP: Floats
    resampled_KR: Floats
    total_K: list[int]


def clustered(rows: Sequence[Values], resamples: int = RESAMPLES, seed: int = SEED) -> Clustered:
    """Resample modules, those that any of the rows has, for all rows at once."""
    modules = sorted(set().union(*(row.module_F for row in rows)))
    place = {module: at for at, module in enumerate(modules)}
    sum_KP, weight_KP = np.zeros((len(rows), len(modules))), np.zeros((len(rows), len(modules)))
    for k, (value_F, module_F) in enumerate(rows):
        there_F = ~np.isnan(value_F)
        at_F = np.array([place[module] for module in module_F[there_F]], dtype=np.int64)
        sum_KP[k] = np.bincount(at_F, value_F[there_F], minlength=len(modules))
        weight_KP[k] = np.bincount(at_F, minlength=len(modules))
    # Each row has weights of its own: its mean is a ratio of two means over the same resampled modules.
    sums, weights = np.split(
        resampled_means(np.concatenate([sum_KP, weight_KP]), np.ones(len(modules)), resamples, seed), 2
    )
    with np.errstate(invalid="ignore"):
        return Clustered(sum_KP / weight_KP, weight_KP, sums / weights, [len(row.value_F) for row in rows])


def mean_of(found: Clustered, k: int) -> Mean:
    """A row's mean over units; no interval where all modules are alike, of which every resample is a copy."""
    mean_P, weight_P = found.mean_KP[k], found.weight_KP[k]
    low, high = (np.nan, np.nan) if _is_same(mean_P) else _interval(found.resampled_KR[k])
    return Mean(_mean(mean_P, weight_P), low, high, int(weight_P.sum()), int((weight_P > 0).sum()), found.total_K[k])


def change_of(found: Clustered, a: int, b: int) -> Change:
    """Row ``a`` minus row ``b``.

    The p-value inverts the interval: twice the smaller share of resamples on one side of 0, the sample itself counted
    among them. It is never below what a permutation test can reach on modules whose adapters are exchanged, in pairs
    where both have the module.
    """
    mean_P, against_P = found.mean_KP[a], found.mean_KP[b]
    has_a, has_b = ~np.isnan(mean_P), ~np.isnan(against_P)
    pairs = int((has_a & has_b).sum())
    change = _mean(mean_P, found.weight_KP[a]) - _mean(against_P, found.weight_KP[b])
    if np.isnan(change):  # one has no value at all
        return Change(np.nan, np.nan, np.nan, np.nan, pairs)
    change_R = found.resampled_KR[a] - found.resampled_KR[b]
    low, high = (np.nan, np.nan) if _is_same(mean_P) and _is_same(against_P) else _interval(change_R)
    one_side = min((change_R <= 0).sum(), (change_R >= 0).sum())
    p = 2 * (1 + one_side) / (1 + (~np.isnan(change_R)).sum())
    only_a, only_b = int((has_a & ~has_b).sum()), int((has_b & ~has_a).sum())
    differ = int((has_a & has_b & (mean_P != against_P)).sum())
    least = 2 / (2**differ * comb(only_a + only_b, only_a))
    return Change(change, low, high, float(min(1.0, max(p, least))), pairs)


def _mean(mean_P: Floats, weight_P: Floats) -> float:
    there_P = weight_P > 0
    return float(np.average(mean_P[there_P], weights=weight_P[there_P])) if there_P.any() else np.nan


def _is_same(mean_P: Floats) -> bool:
    """But for the rounding of their sums."""
    there = mean_P[~np.isnan(mean_P)]
    return there.size == 0 or bool(np.ptp(there) <= 1e-12 * np.abs(there).max())


def _interval(resampled_R: Floats) -> tuple[float, float]:
    low, high = np.nanquantile(resampled_R, (0.025, 0.975))
    return float(low), float(high)
