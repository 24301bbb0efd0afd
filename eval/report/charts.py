"""Lookups in the results, and the charts of the report's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

from monolora.eval.measures.table import PERCENT, Column
from monolora.reporting.numbers import (
    NOTHING,
    Axis,
    Tick,
    decimals,
    decimals_of_small,
    format_change,
    format_interval,
    format_number,
    plain,
)

ALPHA = 0.05
"""A difference is marked where its p, after Holm's correction, is below this."""

HEADLINE_DIGITS = 2  # as the paper's table 2 has them

MARK = "*"


class View:
    """Lookups in the results that every form of the report shares.

    Args:
        results: the content of ``results.json``.
    """

    def __init__(self, results: Mapping[str, Any]) -> None:
        self.results = results
        self.models: list[str] = [model["name"] for model in results["models"]]
        self.base = self.models[0]
        self.columns = [Column.read(column) for column in results["columns"]]
        self.headline = [column for column in self.columns if column.headline]
        self.others = [column for column in self.columns if not column.headline]
        self._against = {(row["column"], row["model"], row["against"]): row for row in results["differences"]}

    @cached_property
    def harm(self) -> list[Column]:
        """The headline columns of judges of harm."""
        judges = {judge["name"] for judge in self.results["judges"] if judge["kind"] == "harm"}
        return [column for column in self.headline if column.judge in judges]

    @cached_property
    def _digits(self) -> dict[str, int]:
        cells = self.results["cells"]
        return {
            column.id: max(
                (decimals if column.unit == PERCENT else decimals_of_small)(
                    cell["value"] for row in cells.values() if (cell := row.get(column.id))
                ),
                HEADLINE_DIGITS if column.headline else 0,
            )
            for column in self.columns
        }

    @cached_property
    def _by_id(self) -> dict[str, Column]:
        return {column.id: column for column in self.columns}

    def digits(self, column: str) -> int:
        """Decimals that the column is shown with."""
        return self._digits[column]

    def column(self, name: str) -> Column:
        """The column with this id."""
        return self._by_id[name]

    def cell(self, model: str, column: str) -> dict[str, Any] | None:
        """Value, low, high, n and invalid; None where this was not measured or nothing valid is left of it."""
        cell = self.results["cells"].get(model, {}).get(column)
        return None if cell is None or cell["value"] is None else cell

    def difference(self, model: str, column: str) -> dict[str, Any] | None:
        """The model minus the base, or None."""
        return self._against.get((column, model, self.base))

    def value(self, model: str, column: str) -> str:
        """The value as it is shown, or a dash."""
        cell = self.cell(model, column)
        return NOTHING if cell is None else format_number(cell["value"], self.digits(column))

    def interval(self, model: str, column: str) -> str:
        """The interval as it is shown, or nothing."""
        cell = self.cell(model, column)
        return "" if cell is None else format_interval(cell["low"], cell["high"], self.digits(column))

    def marked(self, model: str, column: str) -> bool:
        """Whether the model differs from the base in this column, after Holm's correction."""
        return is_significant(self.difference(model, column))

    def reading(self, difference: Mapping[str, Any] | None) -> str:
        """``better``, ``worse`` or ``other`` for a significant difference, else an empty word."""
        if difference is None or not is_significant(difference) or not difference["difference"]:
            return ""
        better = self.column(difference["column"]).better
        if better is None:
            return "other"
        return "better" if (difference["difference"] > 0) == (better == "higher") else "worse"

    def change(self, difference: Mapping[str, Any]) -> str:
        """The difference as it is shown."""
        return format_change(difference["difference"], self.digits(difference["column"]))

    def change_interval(self, difference: Mapping[str, Any]) -> str:
        """The interval of the difference as it is shown, or nothing."""
        digits = self.digits(difference["column"])
        return format_interval(difference["low"], difference["high"], digits, changes=True)

    def full_title(self, column: Column) -> str:
        """Group and title: the title alone may stand for several judges."""
        group, title = plain(column.group), plain(column.title)
        return title if group in ("", title) else f"{group} {title}"


def is_significant(difference: Mapping[str, Any] | None) -> bool:
    """Whether p after Holm's correction is below :data:`ALPHA`."""
    return difference is not None and difference["p_holm"] is not None and difference["p_holm"] < ALPHA


def unit(column: Column) -> str:
    """How a difference in this column is counted: percent values differ by points."""
    return "points" if column.unit == PERCENT else column.unit


COLOURS = 8  # of the page's palette; the base has a grey of its own


class Mark(NamedTuple):
    """One model's value in a panel.

    Attributes:
        model: its name.
        colour: its index in the palette.
        value: as it is shown.
        interval: as it is shown, or empty.
        at: the position of the value, or None where there is none.
        low: the position of the interval's low end, or None.
        high: the position of its high end, or None.
        note: shown beside the value, such as its number of rows.
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
        reference: the position of the base's value, or None.
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


def colour(view: View, model: str) -> str:
    """The name of the model's colour in the page's style sheet."""
    row = view.models.index(model)
    return f"c{(row - 1) % COLOURS + 1}" if row else "c0"


def score_panels(view: View) -> list[Panel]:
    """One panel a headline column, with each model's value and interval."""
    return [_score_panel(view, column) for column in view.headline if any(view.cell(m, column.id) for m in view.models)]


def _score_panel(view: View, column: Column) -> Panel:
    name = column.id
    cells = {model: view.cell(model, name) for model in view.models}
    known = [cell for cell in cells.values() if cell is not None]
    axis = Axis([cell[key] for cell in known for key in ("value", "low", "high")], from_zero=True)
    base = cells[view.base]
    marks = []
    for model, cell in cells.items():
        star = MARK if view.marked(model, name) else ""
        mark = Mark(model, colour(view, model), view.value(model, name) + star, view.interval(model, name))
        if cell is not None:
            at, low, high = (axis.percent(cell[key]) for key in ("value", "low", "high"))
            mark = mark._replace(at=at, low=low, high=high)
        marks.append(mark)
    return Panel(_title(view, column), axis.ticks(), None if base is None else axis.percent(base["value"]), marks)


def share_panels(view: View, rows: Sequence[Mapping[str, Any]], key: str) -> list[Panel]:
    """Bars of percentages on one common scale, a panel a category or label, in the order in which they come.

    Args:
        view: the results.
        rows: with ``model``, ``value`` in percent or None, ``n``, and what ``key`` names.
        key: ``category`` or ``label``.
    """
    axis = Axis([0.0, *(row["value"] for row in rows)], from_zero=True)
    digits = decimals(row["value"] for row in rows)
    panels: dict[str, list[Mark]] = {}
    for row in rows:
        marks = panels.setdefault(row[key], [])
        value, at = format_number(row["value"], digits), axis.percent(row["value"])
        marks.append(Mark(row["model"], colour(view, row["model"]), value, "", at=at, note=f"n={row['n']}"))
    return [Panel(name, axis.ticks(), None, marks) for name, marks in panels.items()]


def curves(view: View) -> list[Curve]:
    """One curve a column that was measured along training."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in view.results["steps"]:
        if row["value"] is not None:
            rows.setdefault(row["column"], []).append(row)
    return [_curve(view, name, sorted(own, key=lambda row: int(row["step"]))) for name, own in rows.items()]


def _curve(view: View, name: str, rows: Sequence[Mapping[str, Any]]) -> Curve:
    across = Axis([row["step"] for row in rows], from_zero=True)
    up = Axis([row[key] for row in rows for key in ("value", "low", "high")], from_zero=True)
    xs = [float(across.percent(row["step"]) or 0) for row in rows]
    bars = [
        (x, float(up.percent(row["low"]) or 0), float(up.percent(row["high"]) or 0))
        for x, row in zip(xs, rows, strict=True)
        if row["low"] is not None and row["high"] is not None
    ]
    corners = [(x, high) for x, _, high in bars] + [(x, low) for x, low, _ in reversed(bars)]
    points = [(x, float(up.percent(row["value"]) or 0)) for x, row in zip(xs, rows, strict=True)]
    column, last, digits = view.column(name), rows[-1], view.digits(name)
    return Curve(
        _title(view, column),
        across.ticks(),
        up.ticks(),
        points,
        list(pairwise(points)),
        " ".join(f"{x:g},{100 - y:g}" for x, y in corners),
        f"{format_number(last['value'], digits)} {format_interval(last['low'], last['high'], digits)}".rstrip(),
    )


def _title(view: View, column: Column) -> str:
    return f"{view.full_title(column)}, {column.unit}" if column.unit else view.full_title(column)
