"""The table as files: CSV to compute with, LaTeX for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from monolora.eval.measures.table import Column
from monolora.eval.report.charts import ALPHA, View
from monolora.reporting import tables
from monolora.reporting.numbers import plain
from monolora.reporting.tables import csv_text

FIELDS = ("model", "column", "group", "title", "set", "unit", "value", "low", "high", "n", "invalid")


def as_csv(results: Mapping[str, Any]) -> str:
    """One row a model and column, numbers in full; fields are empty where nothing was measured."""
    view = View(results)
    rows: list[Sequence[Any]] = [FIELDS]
    for model in view.models:
        for column in view.columns:
            cell = results["cells"].get(model, {}).get(column.id) or {}
            described = [column.id, column.group, column.title, column.set, column.unit]
            rows.append([model, *described, *(cell.get(key) for key in ("value", "low", "high", "n", "invalid"))])
    return csv_text(rows)


def as_latex(results: Mapping[str, Any]) -> str:
    """The headline columns as a booktabs table, intervals in small type below the values."""
    view = View(results)
    n_columns = len(view.headline)
    lines = [
        r"% Needs \usepackage{booktabs}.",
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{_caption(view)}}}",
        rf"\begin{{tabular}}{{l{'r' * n_columns}}}",
        r"\toprule",
        *_group_row(view.headline),
        " & ".join(["", *(_title(column) for column in view.headline)]) + r" \\",
        r"\midrule",
        *(line for model in view.models for line in _rows(view, model)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text as LaTeX shows it to the letter."""
    return tables.escaped(plain(text))


def _caption(view: View) -> str:
    parts = [escaped(view.results["title"]).rstrip(".") + "."]
    if view.models[1:]:
        parts.append(f"$^*$ differs from {escaped(view.base)} ($p < {ALPHA}$ after Holm's correction).")
    parts.append(r"In brackets: 95\,\% confidence intervals of each model's own mean.")
    return " ".join(parts)


def _title(column: Column) -> str:
    return escaped(f"{column.title} ({column.unit})" if column.unit else column.title)


def _group_row(columns: Sequence[Column]) -> list[str]:
    """The groups above the columns that they span, each with a rule below."""
    heads, rules, start = [], [], 2  # the first column has the models
    for group, members in groupby(columns, key=lambda column: column.group):
        span = len(list(members))
        heads.append(rf"\multicolumn{{{span}}}{{c}}{{{escaped(group)}}}")
        if group:
            rules.append(rf"\cmidrule(lr){{{start}-{start + span - 1}}}")
        start += span
    return [" & ".join(["", *heads]) + r" \\", " ".join(rules)] if rules else []


def _rows(view: View, model: str) -> list[str]:
    values, intervals = [escaped(model)], [""]
    for column in view.headline:
        mark = "$^*$" if view.marked(model, column.id) else ""
        values.append(escaped(view.value(model, column.id)) + mark)
        interval = escaped(view.interval(model, column.id))
        intervals.append(rf"{{\scriptsize {interval}}}" if interval else "")
    lines = [" & ".join(values) + r" \\"]
    # {} keeps LaTeX from reading what follows \\ as its optional argument
    return [*lines, " & ".join(["{}", *intervals[1:]]) + r" \\"] if any(intervals) else lines
