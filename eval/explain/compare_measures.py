"""What is compared: values of units, from the columns of ``features.parquet`` on one data set.

Shapes: F features of an adapter: its units, or their ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RATE = 0.05  # of false discoveries


class Measure(NamedTuple):
    """A measure whose mean over units is compared.

    Attributes:
        id: of it.
        title: for people.
        unit: of the values.
        columns: that it is made of; each there is gives every unit a value: signed units have two ends.
        value: makes it of a column.
        has_spread: whether the distribution over units says more than the mean.
        is_logarithmic: whether the distribution is best seen on a logarithmic scale.
        has_chance: whether the data set's level of chance is its own.
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
    there = [column for column in measure.columns if column in frame]
    value_F = np.concatenate([measure.value(frame[column].to_numpy(np.float64)) for column in there])
    return Values(value_F, np.tile(frame["module"].to_numpy(object), len(there)))


def largest_effects(frame: pd.DataFrame) -> dict[str, float]:
    """The largest effect, in percent, and how many times the mean it is (NaN where that is 0).

    Neither is a mean: no interval is given, as a bootstrap of a largest value has none that is right.
    """
    effect_U = 100 * frame["effect"].to_numpy(np.float64)
    mean = effect_U.mean()
    return {"largest_effect": float(effect_U.max()), "peak": float(effect_U.max() / mean) if mean > 0 else np.nan}


LARGEST_TITLES = {"largest_effect": ("largest effect", "%"), "peak": ("largest over mean effect", "")}
