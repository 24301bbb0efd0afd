"""Where the curves of the page go: cumulative distributions over units, in percent of the chart's width and height."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolora.eval.explain.compare_measures import MEASURES
from monolora.eval.explain.compare_records import DatasetRows, Row
from monolora.eval.explain.compare_text import heading
from monolora.eval.report.charts import Tick

Floats = NDArray[np.float64]

_STEPS = 200  # of a curve
_DECADES = 5  # of a logarithmic axis, at most
_LOGARITHMIC = {measure.id for measure in MEASURES if measure.is_logarithmic}


class Curve(NamedTuple):
    """One adapter's units: ``points`` are of an SVG polyline, y from the top; ``colour`` is its place among them."""

    adapter: str
    colour: int
    median: str
    points: str


class Panel(NamedTuple):
    """The distribution of a measure over the units of every adapter.

    Attributes:
        title: what is measured.
        ticks: of its axis.
        curves: one an adapter that has values.
    """

    title: str
    ticks: list[Tick]
    curves: list[Curve]


def panels(dataset: DatasetRows) -> list[Panel]:
    """One panel a measure whose distribution is of interest."""
    return [_panel(row) for row in dataset.rows if row.values]


def cumulative(values_F: Floats, at: Floats) -> Floats:
    """The share of the values that are not above each place."""
    return np.searchsorted(np.sort(values_F), at, side="right") / len(values_F)


def _panel(row: Row) -> Panel:
    known = {name: value_F[~np.isnan(value_F)] for name, value_F in row.values.items()}
    every = np.concatenate(list(known.values()))
    is_log = row.id in _LOGARITHMIC and bool((every > 0).any())
    ticks = _decades(every[every > 0]) if is_log else _round_numbers(float(every.min()), float(every.max()))
    low, high = ticks[0], ticks[-1]
    at = np.geomspace(low, high, _STEPS + 1) if is_log else np.linspace(low, high, _STEPS + 1)
    at[-1] = high  # rounding must not leave the largest value out
    curves = [
        Curve(name, place % 8 + 1, f"{np.median(values_F):.3g}", _points(cumulative(values_F, at)))
        for place, (name, values_F) in enumerate(known.items())
        if len(values_F)
    ]
    places = np.log(np.array(ticks) / low) / np.log(high / low) if is_log else (np.array(ticks) - low) / (high - low)
    labels = [f"{tick:.3g}" for tick in ticks]
    shown = [Tick(round(100 * float(place), 3), label) for place, label in zip(places, labels, strict=True)]
    return Panel(heading(row), shown, curves)


def _points(share_S: Iterable[float]) -> str:
    """A line of steps from the bottom: as far as the last place each share holds, then up."""
    points, before = ["0,100"], 0.0
    for place, share in enumerate(share_S):
        if share != before:
            x = 100 * place / _STEPS
            points += [f"{x:g},{100 * (1 - before):.4g}", f"{x:g},{100 * (1 - share):.4g}"]
            before = share
    return " ".join([*points, f"100,{100 * (1 - before):.4g}"])


def _round_numbers(low: float, high: float) -> list[float]:
    """Some five round numbers that enclose both; a scale that can begin at zero does."""
    low = 0.0 if 0 <= low < 0.6 * high else low
    if high - low <= 1e-9 * abs(high):
        low, high = low - 0.5, high + 0.5
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if 5 * factor * power >= (high - low) * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _decades(positive: Floats) -> list[float]:
    """Powers of ten that enclose the values, or the upper ones of too many."""
    high = math.ceil(math.log10(float(positive.max())) - 1e-9)
    low = max(min(math.floor(math.log10(float(positive.min()))), high - 1), high - _DECADES)
    return [10.0**power for power in range(low, high + 1)]
