"""Lookups in the results, and the charts of the report's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from monolora.eval.measures.table import PERCENT, Column
from monolora.reporting.charts import SHARES, Curves, Line, Measured, Panel, Point, axis_of, curves, panel
from monolora.reporting.numbers import (
    NOTHING,
    Axis,
    decimals,
    decimals_of_small,
    format_change,
    format_interval,
    format_number,
    plain,
)
from monolora.reporting.palette import colour_name

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


def colour(view: View, model: str) -> str:
    """The name of the model's colour in the page's style sheet."""
    row = view.models.index(model)
    return colour_name(row - 1 if row else None)


class Group(NamedTuple):
    """Charts of one topic.

    Attributes:
        id: of its section.
        title: its heading.
        note: how to read them.
        from_zero: whether they are bars.
        panels: a chart a column.
    """

    id: str
    title: str
    note: str
    from_zero: bool
    panels: list[Panel]


KEPT = "still refused"
"""The metric of the base's refusals that a model keeps."""

_INTERVALS = "Lines are 95 % confidence intervals"


def groups(view: View) -> list[Group]:
    """The charts, in the order of the report's questions; none without a value."""
    dashed = f"the dashed line is {view.base}"
    refusals = sorted((c for c in view.columns if c.aspect == "refusal" and c.unit == PERCENT), key=_kept_first)
    harm = [column for column in view.headline if column.aspect == "harm"]
    others = [column for column in view.headline if column.aspect not in ("harm", "task")]
    apart = f"How far a model’s next-token probabilities are from those of {view.base}. {_INTERVALS}."
    drift = [column for column in view.columns if column.aspect == "drift"]
    task = [column for column in view.headline if column.aspect == "task"]
    found = [
        Group("refusals", "Refusals", f"{_INTERVALS}; {dashed}.", True, _panels(view, refusals)),
        Group("harm", "Harm", f"{_INTERVALS}; {dashed}. Each chart has its own scale.", False, _panels(view, harm)),
        Group("task", "Task", f"{_INTERVALS}; {dashed}.", False, _panels(view, task)),
        Group("drift", "Drift from the base", apart, True, _panels(view, drift)),
        Group("sparsity", "Sparsity", f"{_INTERVALS}.", False, _panels(view, others)),
    ]
    return [group for group in found if group.panels]


def _panels(view: View, columns: Sequence[Column]) -> list[Panel]:
    return [_score_panel(view, column) for column in columns if _is_measured(view, column)]


def _kept_first(column: Column) -> bool:
    return column.metric != KEPT


def _is_measured(view: View, column: Column) -> bool:
    return any(view.cell(model, column.id) for model in _shown(view, column))


def _shown(view: View, column: Column) -> list[str]:
    """The models that can have any other value than one that is known."""
    return view.models if column.of_base else view.models[1:]


def _score_panel(view: View, column: Column) -> Panel:
    values = [_measured(view, model, column) for model in _shown(view, column)]
    is_share = column.aspect == "refusal"
    base = view.cell(view.base, column.id) if column.of_base else None
    axis = SHARES if is_share else axis_of(values)
    return panel(_title(view, column), values, axis, None if base is None else base["value"])


def _measured(view: View, model: str, column: Column) -> Measured:
    cell = view.cell(model, column.id)
    star = MARK if view.marked(model, column.id) else ""
    own = Measured(model, colour(view, model), None, None, None, view.value(model, column.id) + star)
    if cell is None:
        return own
    ends = own._replace(value=cell["value"], low=cell["low"], high=cell["high"])
    if column.metric == KEPT:
        return ends._replace(note="{} of {}".format(*kept(cell)))
    return ends._replace(interval=view.interval(model, column.id))


def kept(cell: Mapping[str, Any]) -> tuple[int, int]:
    """How many of the base's refusals a cell of "still refused" stands for, and of how many."""
    return round(cell["value"] * cell["n"] / 100), cell["n"]


def kept_refusals(view: View) -> Column | None:
    """The first column of the base's refusals that models keep, of the safety sets first; None if there is none."""
    return next((c for c in view.columns if c.metric == KEPT and _is_measured(view, c)), None)


def share_panels(view: View, rows: Sequence[Mapping[str, Any]], key: str) -> list[Panel]:
    """Bars of percentages on one common scale, a panel a category or label, in the order in which they come.

    Args:
        view: the results.
        rows: with ``model``, ``value`` in percent or None, ``n``, and what ``key`` names.
        key: ``category`` or ``label``.
    """
    axis = Axis([0.0, *(row["value"] for row in rows)], from_zero=True)
    digits = decimals(row["value"] for row in rows)
    by_key: dict[str, list[Measured]] = {}
    for row in rows:
        text = NOTHING if row["value"] is None else f"{format_number(row['value'], digits)} %"
        measured = Measured(row["model"], colour(view, row["model"]), row["value"], None, None, text)
        by_key.setdefault(row[key], []).append(measured._replace(note=f"n={row['n']}"))
    return [panel(name, values, axis) for name, values in by_key.items()]


def along_training(view: View) -> list[Curves]:
    """One chart a column that was measured along training."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in view.results["steps"]:
        if row["value"] is not None:
            rows.setdefault(row["column"], []).append(row)
    return [_curve(view, name, sorted(own, key=lambda row: int(row["step"]))) for name, own in rows.items()]


def _curve(view: View, name: str, rows: Sequence[Mapping[str, Any]]) -> Curves:
    column, last, digits = view.column(name), rows[-1], view.digits(name)
    shown = f"{format_number(last['value'], digits)} {format_interval(last['low'], last['high'], digits)}".rstrip()
    points = [Point(row["step"], row["value"], row["low"], row["high"]) for row in rows]
    return curves(_title(view, column), {last["model"]: Line("c1", points, shown)})


def _title(view: View, column: Column) -> str:
    if column.metric == KEPT:
        return f"Refusals kept, of {plain(view.base)}’s on {plain(column.set)}, %"
    return f"{view.full_title(column)}, {column.unit}" if column.unit else view.full_title(column)
