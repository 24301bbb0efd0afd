"""Where the marks of the page's charts go: all positions are percent of the chart's width or height.

The page draws them as SVG whose lengths are percentages too: a chart grows and shrinks with the page and its text does
not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from monolora.eval.report.numbers import decimals, shown, shown_interval
from monolora.eval.report.view import MARK, View

_TINY = 1e-6  # no difference that a chart shows
COLOURS = 8  # of the page's palette; the base has a grey of its own


class Tick(NamedTuple):
    """A labelled place on an axis."""

    at: float
    label: str


class Mark(NamedTuple):
    """One model's value in a panel.

    Attributes:
        model: its name.
        colour: its place in the palette.
        value: as it is shown.
        interval: as it is shown, or empty.
        at: the place of the value, or None where there is none.
        low: the place of the interval's low end, or None.
        high: the place of its high end, or None.
        note: said beside the value, such as how many rows it is of.
    """

    model: str
    colour: str
    value: str
    interval: str
    at: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


class Panel(NamedTuple):
    """One chart of several models.

    Attributes:
        title: what is measured.
        ticks: of the axis.
        reference: the place of the base's value, or None.
        marks: one a model.
    """

    title: str
    ticks: list[Tick]
    reference: float | None
    marks: list[Mark]


class Curve(NamedTuple):
    """One column along training.

    Attributes:
        title: what is measured.
        across: ticks of the steps.
        up: ticks of the values, from the bottom.
        points: ``(across, up)`` of each checkpoint.
        segments: the same, each with the next.
        band: the corners of the intervals' polygon, for SVG; y from the top.
        last: the last checkpoint's value as it is shown.
    """

    title: str
    across: list[Tick]
    up: list[Tick]
    points: list[tuple[float, float]]
    segments: list[tuple[tuple[float, float], tuple[float, float]]]
    band: str
    last: str


class _Axis:
    """A linear scale over round numbers."""

    def __init__(self, values: Iterable[float | None], from_zero: bool) -> None:
        known = [value for value in values if value is not None] or [0.0]
        low, high = min(known), max(known)
        # A scale from zero shows how large a difference is; far from zero it would only hide it.
        if from_zero and 0 <= low < 0.6 * high:
            low = 0.0
        if high - low < _TINY:
            low, high = (low - abs(low) / 10, high + abs(high) / 10) if abs(high) > _TINY else (0.0, 1.0)
        self.step = _round_step((high - low) / 3)
        self.low, self.high = (math.floor(low / self.step) * self.step, math.ceil(high / self.step) * self.step)

    def place(self, value: float | None) -> float | None:
        """Percent of the way from the low end to the high end."""
        return None if value is None else round(100 * (value - self.low) / (self.high - self.low), 3)

    def ticks(self) -> list[Tick]:
        """At the round numbers, both ends included."""
        places = max(0, -math.floor(math.log10(self.step) + 1e-9))
        count = round((self.high - self.low) / self.step)
        return [
            Tick(round(100 * number / count, 3), shown(self.low + number * self.step, places))
            for number in range(count + 1)
        ]


def colour(view: View, model: str) -> str:
    """The name of the model's colour in the page's style sheet."""
    place = view.models.index(model)
    return f"c{(place - 1) % COLOURS + 1}" if place else "c0"


def score_panels(view: View) -> list[Panel]:
    """One panel a headline column, with each model's value and interval."""
    return [
        _score_panel(view, column) for column in view.headline if any(view.cell(m, column["id"]) for m in view.models)
    ]


def _score_panel(view: View, column: Mapping[str, Any]) -> Panel:
    name = column["id"]
    cells = {model: view.cell(model, name) for model in view.models}
    known = [cell for cell in cells.values() if cell is not None]
    axis = _Axis([cell[key] for cell in known for key in ("value", "low", "high")], from_zero=True)
    base = cells[view.base]
    marks = []
    for model, cell in cells.items():
        star = MARK if view.marked(model, name) else ""
        mark = Mark(model, colour(view, model), view.value(model, name) + star, view.interval(model, name))
        if cell is not None:
            at, low, high = (axis.place(cell[key]) for key in ("value", "low", "high"))
            mark = mark._replace(at=at, low=low, high=high)
        marks.append(mark)
    return Panel(_title(view, column), axis.ticks(), None if base is None else axis.place(base["value"]), marks)


def share_panels(view: View, rows: Sequence[Mapping[str, Any]], key: str) -> list[Panel]:
    """Bars of percentages on one common scale, a panel a category or label, in the order in which they come.

    Args:
        view: the results.
        rows: with ``model``, ``value`` in percent or None, ``n``, and what ``key`` names.
        key: ``category`` or ``label``.
    """
    axis = _Axis([0.0, *(row["value"] for row in rows)], from_zero=True)
    places = decimals(row["value"] for row in rows)
    panels: dict[str, list[Mark]] = {}
    for row in rows:
        marks = panels.setdefault(row[key], [])
        value, at = shown(row["value"], places), axis.place(row["value"])
        marks.append(Mark(row["model"], colour(view, row["model"]), value, "", at=at, note=f"n={row['n']}"))
    return [Panel(name, axis.ticks(), None, marks) for name, marks in panels.items()]


def curves(view: View) -> list[Curve]:
    """One curve a column that was measured along training."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in view.results["steps"]:
        if row["value"] is not None:
            rows.setdefault(row["column"], []).append(row)
    return [_curve(view, name, sorted(found, key=lambda row: int(row["step"]))) for name, found in rows.items()]


def _curve(view: View, name: str, rows: Sequence[Mapping[str, Any]]) -> Curve:
    across = _Axis([row["step"] for row in rows], from_zero=True)
    up = _Axis([row[key] for row in rows for key in ("value", "low", "high")], from_zero=True)
    xs = [float(across.place(row["step"]) or 0) for row in rows]
    bars = [
        (x, float(up.place(row["low"]) or 0), float(up.place(row["high"]) or 0))
        for x, row in zip(xs, rows, strict=True)
        if row["low"] is not None and row["high"] is not None
    ]
    corners = [(x, high) for x, _, high in bars] + [(x, low) for x, low, _ in reversed(bars)]
    points = [(x, float(up.place(row["value"]) or 0)) for x, row in zip(xs, rows, strict=True)]
    column, last, places = view.column(name), rows[-1], view.places(name)
    return Curve(
        _title(view, column),
        across.ticks(),
        up.ticks(),
        points,
        list(pairwise(points)),
        " ".join(f"{x:g},{100 - y:g}" for x, y in corners),
        f"{shown(last['value'], places)} {shown_interval(last['low'], last['high'], places)}".rstrip(),
    )


def _title(view: View, column: Mapping[str, Any]) -> str:
    return f"{view.full_title(column)}, {column['unit']}" if column["unit"] else view.full_title(column)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, … (times a power of ten) that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
