"""What a chart of the report shows, in a sentence: differences by their tests, and nothing where there is no test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monolora.eval.measures.table import Column
from monolora.eval.report.lookups import KEPT, View, is_significant, kept, unit
from monolora.reporting.numbers import format_number, listed, plain

_MOST = 3  # models that a sentence names


def finding(view: View, column: Column) -> str:
    """The sentence; empty where nothing is tested."""
    if column.metric == KEPT:
        return _kept(view, column)
    return _against_base(view, column) if column.of_base else _between(view, column)


def _kept(view: View, column: Column) -> str:
    cells = {model: view.cell(model, column.id) for model in view.models[1:]}
    counts = {model: kept(cell) for model, cell in cells.items() if cell is not None}
    if len(counts) > _MOST:
        return ""
    verbs = ["keeps ", *[""] * _MOST]
    said = [
        f"{plain(model)} {verb}{count} of {n}" for (model, (count, n)), verb in zip(counts.items(), verbs, strict=False)
    ]
    return f"Of {plain(view.base)}’s refusals, {', '.join(said)}."


def _against_base(view: View, column: Column) -> str:
    rows = [row for model in view.models[1:] if (row := view.difference(model, column.id)) is not None]
    tested = [row for row in rows if row["p_holm"] is not None and row["difference"] is not None]
    clear = [row for row in tested if is_significant(row)]
    base = plain(view.base)
    if not tested:
        return ""
    if not clear:
        return f"No difference from {base} was found."
    if len(clear) > _MOST:
        return f"{len(clear)} of {len(tested)} models differ from {base}."
    return f"{listed(_change(view, column, row) for row in clear)} {base}."


def _change(view: View, column: Column, row: Mapping[str, Any]) -> str:
    size = f"{format_number(abs(row['difference']), view.digits(column.id))} {unit(column)}".rstrip()
    return f"{plain(row['model'])} is {size} {'above' if row['difference'] > 0 else 'below'}"


def _between(view: View, column: Column) -> str:
    """Of a column that the base has no value of: the lowest model against the highest."""
    known = {model: cell["value"] for model in view.models[1:] if (cell := view.cell(model, column.id)) is not None}
    if len(known) < 2:
        return ""
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    difference = view.between(low, high, column.id)
    if difference is None or difference["p_holm"] is None:
        return ""
    if not is_significant(difference):
        return f"No difference between {plain(low)} and {plain(high)} was found."
    verb = "drifts less" if column.aspect == "drift" else "has less"
    return f"{plain(low)} {verb} than {plain(high)}."
