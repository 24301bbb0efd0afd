"""Charts of pages: what is drawn, in percent of the axes; ``charts.html.j2`` draws it, ``charts.css`` colours it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from monolora.reporting.numbers import Axis, Tick


class Point(NamedTuple):
    """A value at a place of the horizontal axis, with its interval where it has one."""

    x: float
    value: float
    low: float | None = None
    high: float | None = None


class Measured(NamedTuple):
    """A value to be drawn.

    Attributes:
        name: of what it is measured on.
        colour: class of its colour (:mod:`monolora.reporting.palette`).
        value, low, high: in the unit of the axis; None where unknown.
        text: the value as it is shown.
        interval: likewise, or empty.
        note: shown beside them, such as a number of rows.
    """

    name: str
    colour: str
    value: float | None
    low: float | None
    high: float | None
    text: str
    interval: str = ""
    note: str = ""


class Mark(NamedTuple):
    """A :class:`Measured` with its positions ``at``, ``low`` and ``high``; None where there is none."""

    name: str
    colour: str
    text: str
    interval: str
    note: str
    at: float | None
    low: float | None
    high: float | None


class Panel(NamedTuple):
    """One chart of several values.

    Attributes:
        title: what is measured.
        finding: what the chart shows, a sentence; empty for none.
        ticks: of the axis.
        reference: the position of the value that the others are compared with, or None.
        marks: the values.
    """

    title: str
    finding: str
    ticks: list[Tick]
    reference: float | None
    marks: list[Mark]


def panel(
    title: str, values: Sequence[Measured], axis: Axis, reference: float | None = None, finding: str = ""
) -> Panel:
    """Values on an axis."""
    marks = [
        Mark(
            each.name, each.colour, each.text, each.interval, each.note,
            axis.percent(each.value), axis.percent(each.low), axis.percent(each.high),
        )
        for each in values
    ]  # fmt: skip
    return Panel(title, finding, axis.ticks(), axis.percent(reference), marks)


def axis_of(values: Iterable[Measured], from_zero: bool = True, is_bar: bool = False, most: float = math.inf) -> Axis:
    """An axis that has room for all values and their intervals; a bar's begins at zero."""
    ends = [end for each in values for end in (each.value, each.low, each.high)]
    return Axis([*ends, 0.0] if is_bar else ends, from_zero, most)


SHARES = Axis([0.0, 100.0], from_zero=True)
"""Of percentages whose smallness is part of the finding."""


class Series(NamedTuple):
    """One line.

    Attributes:
        name: of it.
        colour: class of its colour.
        points: ``(across, up)``.
        segments: the same, each with the next.
        band: the corners of the intervals' polygon, for SVG; y from the top.
        last: the last value as it is shown.
    """

    name: str
    colour: str
    points: list[tuple[float, float]]
    segments: list[tuple[tuple[float, float], tuple[float, float]]]
    band: str
    last: str


class Curves(NamedTuple):
    """Lines along one axis.

    Attributes:
        title: what is measured.
        finding: what the chart shows, a sentence; empty for none.
        across: ticks of the horizontal axis.
        up: ticks of the values, from the bottom.
        series: the lines.
    """

    title: str
    finding: str
    across: list[Tick]
    up: list[Tick]
    series: list[Series]


class Line(NamedTuple):
    """Points in their order, and the last of them as it is shown."""

    colour: str
    points: Sequence[Point]
    last: str


def curves(title: str, lines: Mapping[str, Line], finding: str = "") -> Curves:
    """Lines by name, on common axes."""
    every = [point for line in lines.values() for point in line.points]
    across = Axis([point.x for point in every], from_zero=True)
    up = Axis([end for point in every for end in point[1:]], from_zero=True)
    series = [_series(name, line, across, up) for name, line in lines.items()]
    return Curves(title, finding, across.ticks(), up.ticks(), series)


def _series(name: str, line: Line, across: Axis, up: Axis) -> Series:
    points = [(across.place(point.x), up.place(point.value)) for point in line.points]
    band = [
        (across.place(point.x), up.place(point.low), up.place(point.high))
        for point in line.points
        if point.low is not None and point.high is not None
    ]
    corners = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in reversed(band)]
    polygon = " ".join(f"{x:g},{100 - y:g}" for x, y in corners)
    return Series(name, line.colour, points, list(pairwise(points)), polygon, line.last)
