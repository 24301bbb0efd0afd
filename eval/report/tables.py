"""The table of an evaluation: with its findings in the terminal, as CSV to compute with, as LaTeX for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any

from rich.table import Table
from rich.text import Text

from monolora.eval.measures.table import Column
from monolora.eval.report import sentences
from monolora.eval.report.lookups import ALPHA, MARK, View
from monolora.reporting import tables
from monolora.reporting.numbers import plain
from monolora.reporting.tables import csv_text
from monolora.terminal import Terminal

_STYLES = {"better": "green", "worse": "red", "other": "bold", "": ""}
_GAP = 2  # columns are this far apart
_NAME_WIDTH = 24  # longer names are folded


def show(results: Mapping[str, Any], console: Terminal) -> None:
    """Print the tables and their findings, no wider than the console."""
    view = View(results)
    console.print(Text(plain(results["title"]), style="bold"))
    for title, columns in (("Scores", view.headline), ("What else was measured", view.others)):
        for table in _tables(view, title, columns, console.width):
            console.print()
            console.print(table)
    console.print()
    console.print(_counts(view))
    console.print()
    _say(console, "", _legend(view))
    for model in view.models[1:]:
        console.print()
        _say(console, "", sentences.summary(view, model), style="bold")
        for sentence in sentences.effects(view, model):
            _say(console, "  ", sentence)
    remarks = [*sentences.failures(view), *sentences.agreement(view)]
    if remarks:
        console.print()
    for sentence in remarks:
        _say(console, "", sentence)


def _legend(view: View) -> str:
    compared = (
        f"{MARK} differs from {plain(view.base)} (p < {ALPHA} after Holm's correction). " if view.models[1:] else ""
    )
    return f"{compared}In brackets: 95 % confidence intervals of each model's own mean. –: not measured."


def _say(console: Terminal, indent: str, sentence: str, style: str = "") -> None:
    hanging = indent + indent
    lines = Text(sentence, style=style).wrap(console, console.width - len(hanging))
    for number, line in enumerate(lines):
        line.rstrip()
        console.print(Text(hanging if number else indent) + line)


def _tables(view: View, title: str, columns: Sequence[Column], width: int) -> list[Table]:
    """One table if it fits on one line a model; else the intervals go below the values; else several tables."""
    if not columns:
        return []
    for stacked in (False, True):
        blocks = _blocks(view, columns, width, stacked)
        if len(blocks) == 1:
            break
    parts = [f" ({number} of {len(blocks)})" if len(blocks) > 1 else "" for number in range(1, len(blocks) + 1)]
    return [_table(view, title + part, block, stacked) for part, block in zip(parts, blocks, strict=True)]


def _blocks(view: View, columns: Sequence[Column], width: int, stacked: bool) -> list[list[Column]]:
    """Columns in order, in as few blocks as the width allows and of about one width; at least one column a block."""
    room = width - min(_NAME_WIDTH, max(len(plain(name)) for name in view.models)) - _GAP
    widths = [_width(view, column, stacked) + _GAP for column in columns]
    few = len(_packed(widths, room))
    even = next(tried for tried in range(1, max(room, 1) + 1) if len(_packed(widths, tried)) <= few)
    ends = list(accumulate(map(len, _packed(widths, even))))
    return [list(columns[start:end]) for start, end in pairwise([0, *ends])]


def _packed(widths: Sequence[int], room: int) -> list[list[int]]:
    blocks: list[list[int]] = [[]]
    for width in widths:
        if blocks[-1] and sum(blocks[-1]) + width > room:
            blocks.append([])
        blocks[-1].append(width)
    return blocks


def _width(view: View, column: Column, stacked: bool) -> int:
    lines = [line for model in view.models for line in _cell(view, model, column, stacked).plain.split("\n")]
    words = [word for line in _head(column) for word in line.split()]
    return max(map(len, lines + words))


def _table(view: View, title: str, columns: Sequence[Column], stacked: bool) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=None, padding=(0, _GAP, 0, 0))
    table.add_column(max_width=_NAME_WIDTH, overflow="fold", vertical="top")
    for column in columns:
        head = Text("\n".join(_head(column)))
        table.add_column(
            head, justify="right", vertical="top", overflow="fold", max_width=_width(view, column, stacked)
        )
    for model in view.models:
        table.add_row(Text(plain(model)), *(_cell(view, model, column, stacked) for column in columns))
    return table


def _counts(view: View) -> Table:
    """Numbers of responses and judgements over all sets."""
    table = Table(title="Counts", title_justify="left", title_style="bold", box=None, padding=(0, _GAP, 0, 0))
    table.add_column(max_width=_NAME_WIDTH, overflow="fold", vertical="top")
    heads = {
        "responses": "responses",
        "invalid": "invalid",
        "cut": "prompt cut",
        "empty": "empty",
        "at_limit": "at limit",
    }
    for head in [*heads.values(), "invalid judgements"]:
        table.add_column(head, justify="right", vertical="bottom")
    for model in view.models:
        own = [row for row in view.results["counts"] if row["model"] == model]
        judgements = sum(row["count"] for row in view.results["invalid"] if row["model"] == model)
        table.add_row(Text(plain(model)), *(f"{sum(row[key] for row in own):,}" for key in heads), f"{judgements:,}")
    return table


def _head(column: Column) -> list[str]:
    """Group, and below it title and unit."""
    group, title = plain(column.group), plain(column.title)
    return [*([group] if group not in ("", title) else []), f"{title} {plain(column.unit)}".rstrip()]


def _cell(view: View, model: str, column: Column, stacked: bool) -> Text:
    difference = view.difference(model, column.id)
    mark = MARK if view.marked(model, column.id) else " "  # so that the digits stay below each other
    value = Text(view.value(model, column.id) + mark, style=_STYLES[view.reading(difference)])
    interval = view.interval(model, column.id)
    return value + Text(("\n" if stacked else " ") + interval, style="dim") if interval else value


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
    """Text with LaTeX's special characters escaped."""
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
