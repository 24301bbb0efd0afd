"""Values of units to compare, from the columns of ``features.parquet`` on one data set.

Shapes: F features of an adapter: its units, or their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monolora.eval.explain.compare_records import Mean
from monolora.stats import RESAMPLES, SEED, Estimate, p_of_zero, percentile_ends, resampled_means

Floats = NDArray[np.float64]

RATE = 0.05  # of false discoveries


class Measure(NamedTuple):
    """A measure whose mean over units is compared.

    Attributes:
        id: of it.
        title: for people.
        unit: of the values.
        columns: of the table; each present one gives every unit a value: signed units have two ends.
        value: function of a column.
        has_spread: whether the distribution over units is shown beside the mean.
        is_logarithmic: whether the distribution has a logarithmic scale.
        has_chance: whether the data set's level of chance applies to it.
    """

    id: str
    title: str
    unit: str
    columns: tuple[str, ...]
    value: Callable[[Floats], Floats]
    has_spread: bool = True
    is_logarithmic: bool = False
    has_chance: bool = False


def _percent(share_U: Floats) -> Floats:
    return 100 * share_U


def _itself(value_U: Floats) -> Floats:
    return value_U


def _share_below_rate(q_U: Floats) -> Floats:
    return np.where(np.isnan(q_U), np.nan, 100.0 * (q_U < RATE))


MEASURES = (
    Measure("sparsity", "sparsity", "%", ("firing_rate",), lambda rate_U: 100 * (1 - rate_U)),
    Measure("dead", "dead units", "%", ("firing_rate",), lambda rate_U: 100.0 * (rate_U == 0), has_spread=False),
    Measure(
        "always_on", "always-on units", "%", ("firing_rate",), lambda rate_U: 100.0 * (rate_U == 1),
        has_spread=False,
    ),
    Measure("consistency", "consistency, live units", "%", ("consistency",), _percent),
    Measure(
        "strongest_consistency", "consistency, strongest texts", "%",
        ("strongest_consistency", "lowest_consistency"), _percent, has_chance=True,
    ),
    Measure("information", "information on the label", "bits", ("information",), _itself),
    Measure(
        "informative", f"units with q < {RATE}", "%", ("information_q",), _share_below_rate,
        has_spread=False,
    ),
    Measure("effect", "mean effect", "%", ("effect",), _percent, is_logarithmic=True),
)  # fmt: skip


class Values(NamedTuple):
    """A measure's values and the modules that they are of, shape ``(F,)`` each; NaN for those that have none."""

    value_F: Floats
    module_F: NDArray[np.object_]


def values(frame: pd.DataFrame, measure: Measure) -> Values:
    """The values of one adapter's units.

    Args:
        frame: with ``module`` and the columns of one data set, a row a unit.
        measure: which.
    """
    columns = [column for column in measure.columns if column in frame]
    value_F = np.concatenate([measure.value(frame[column].to_numpy(np.float64)) for column in columns])
    return Values(value_F, np.tile(frame["module"].to_numpy(object), len(columns)))


def largest_effects(frame: pd.DataFrame) -> dict[str, float | None]:
    """The largest effect, in percent, and how many times the mean it is (None where that is 0).

    Neither is a mean, and the bootstrap gives no valid interval for a largest value.
    """
    effect_U = 100 * frame["effect"].to_numpy(np.float64)
    mean = effect_U.mean()
    return {"largest_effect": float(effect_U.max()), "peak": float(effect_U.max() / mean) if mean > 0 else None}


LARGEST_TITLES = {"largest_effect": ("largest effect", "%"), "peak": ("largest over mean effect", "")}


class Clustered(NamedTuple):
    """Rows of values by module, and their means over resampled modules.

    Attributes:
        mean_KP: means of the values in each module; NaN where there is none.
        weight_KP: number of these values.
        resampled_KR: means over units in each resample; NaN where it has no value.
        total_K: number of values, including NaN.
    """

    mean_KP: Floats
    weight_KP: Floats
    resampled_KR: Floats
    total_K: list[int]


def clustered(rows: Sequence[Values], resamples: int = RESAMPLES, seed: int = SEED) -> Clustered:
    """Resample the modules of any row, for all rows at once."""
    modules = sorted(set().union(*(row.module_F for row in rows)))
    index = {module: at for at, module in enumerate(modules)}
    sum_KP, weight_KP = np.zeros((len(rows), len(modules))), np.zeros((len(rows), len(modules)))
    for k, (value_F, module_F) in enumerate(rows):
        measured_F = ~np.isnan(value_F)
        at_F = np.array([index[module] for module in module_F[measured_F]], dtype=np.int64)
        sum_KP[k] = np.bincount(at_F, value_F[measured_F], minlength=len(modules))
        weight_KP[k] = np.bincount(at_F, minlength=len(modules))
    # Each row has weights of its own: its mean is a ratio of two means over the same resampled modules.
    sums, weights = np.split(
        resampled_means(np.concatenate([sum_KP, weight_KP]), np.ones(len(modules)), resamples, seed), 2
    )
    with np.errstate(invalid="ignore"):
        return Clustered(sum_KP / weight_KP, weight_KP, sums / weights, [len(row.value_F) for row in rows])


def mean_of(rows: Clustered, k: int) -> Mean:
    """A row's mean over units; no interval where all modules are alike, of which every resample is a copy."""
    mean_P, weight_P = rows.mean_KP[k], rows.weight_KP[k]
    low, high = (None, None) if _is_same(mean_P) else _interval(rows.resampled_KR[k])
    return Mean(_mean(mean_P, weight_P), low, high, int(weight_P.sum()), int((weight_P > 0).sum()), rows.total_K[k])


def change_of(rows: Clustered, a: int, b: int) -> Estimate | None:
    """Row ``a`` minus row ``b``, with the number of modules that both have as its draws; None where one has no value.

    The p-value is never below what a permutation test can reach on modules whose adapters are exchanged, in pairs where
    both have the module.
    """
    mean_P, against_P = rows.mean_KP[a], rows.mean_KP[b]
    mean, against = _mean(mean_P, rows.weight_KP[a]), _mean(against_P, rows.weight_KP[b])
    if mean is None or against is None:
        return None
    has_a, has_b = ~np.isnan(mean_P), ~np.isnan(against_P)
    change_R = rows.resampled_KR[a] - rows.resampled_KR[b]
    low, high = (None, None) if _is_same(mean_P) and _is_same(against_P) else _interval(change_R)
    only_a, only_b = int((has_a & ~has_b).sum()), int((has_b & ~has_a).sum())
    differ = int((has_a & has_b & (mean_P != against_P)).sum())
    least = 2 / (2**differ * comb(only_a + only_b, only_a))
    p = float(min(1.0, max(p_of_zero(change_R[None])[0], least)))
    return Estimate(mean - against, low, high, p, draws=int((has_a & has_b).sum()))


def _mean(mean_P: Floats, weight_P: Floats) -> float | None:
    has_P = weight_P > 0
    return float(np.average(mean_P[has_P], weights=weight_P[has_P])) if has_P.any() else None


def _is_same(mean_P: Floats) -> bool:
    """Whether all modules have the same mean, up to the rounding of their sums."""
    measured_P = mean_P[~np.isnan(mean_P)]
    return measured_P.size == 0 or bool(np.ptp(measured_P) <= 1e-12 * np.abs(measured_P).max())


def _interval(resampled_R: Floats) -> tuple[float, float]:
    low, high = percentile_ends(resampled_R[None])[:, 0]
    return float(low), float(high)
