"""The charts of the report's page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from monolora.eval.measures.table import PERCENT, Column
from monolora.eval.report.chart_findings import finding
from monolora.eval.report.lookups import KEPT, MARK, View, kept
from monolora.reporting.charts import SHARES, Curves, Line, Measured, Panel, Point, axis_of, curves, panel
from monolora.reporting.numbers import (
    NOTHING,
    Axis,
    decimals,
    format_interval,
    format_number,
    plain,
)
from monolora.reporting.palette import colour_name


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
        Group("refusals", "Refusals", f"{_INTERVALS}; {dashed}.", True, _panels(view, refusals, is_bar=True)),
        Group("harm", "Harm", f"{_INTERVALS}; {dashed}. Each chart has its own scale.", False, _panels(view, harm)),
        Group("task", "Task", f"{_INTERVALS}; {dashed}.", False, _panels(view, task)),
        Group("drift", "Drift from the base", apart, True, _panels(view, drift, is_bar=True)),
        Group("sparsity", "Sparsity", f"{_INTERVALS}.", False, _panels(view, others)),
    ]
    return [group for group in found if group.panels]


def _panels(view: View, columns: Sequence[Column], is_bar: bool = False) -> list[Panel]:
    return [_score_panel(view, column, is_bar) for column in columns if _is_measured(view, column)]


def _kept_first(column: Column) -> bool:
    return column.metric != KEPT


def _is_measured(view: View, column: Column) -> bool:
    return any(view.cell(model, column.id) for model in _shown(view, column))


def _shown(view: View, column: Column) -> list[str]:
    """The models that can have any other value than one that is known."""
    return view.models if column.of_base else view.models[1:]


def _score_panel(view: View, column: Column, is_bar: bool) -> Panel:
    values = [_measured(view, model, column) for model in _shown(view, column)]
    is_share = column.aspect == "refusal"
    base = view.cell(view.base, column.id) if column.of_base else None
    axis = SHARES if is_share else axis_of(values, is_bar=is_bar, most=100 if column.unit == PERCENT else math.inf)
    reference = None if base is None else base["value"]
    return panel(_title(view, column), values, axis, reference, finding(view, column))


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
