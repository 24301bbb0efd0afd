"""A comparison in the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from monolora.eval.explain.compare_records import Comparison, DatasetRows
from monolora.eval.explain.compare_text import (
    about,
    chance_text,
    difference_heading,
    difference_text,
    heading,
    mean_text,
    remarks,
)
from monolora.eval.report.numbers import plain
from monolora.terminal import Terminal


def show(comparison: Comparison, console: Terminal) -> None:
    """Print the tables and how to read them."""
    for dataset in comparison.datasets:
        console.print(Text(f"{plain(dataset.name)}: {about(dataset)}", style="bold"))
        console.print()
        console.print(_means(comparison, dataset))
        console.print()
        console.print(_differences(dataset))
        console.print()
    for remark in remarks(comparison):
        console.print(Text(remark))


def _table(*titles: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for place, title in enumerate(titles):
        table.add_column(Text(title), justify="right" if place else "left", overflow="fold", vertical="top")
    return table


def _means(comparison: Comparison, dataset: DatasetRows) -> Table:
    has_chance = any(chance_text(row) for row in dataset.rows)
    table = _table("mean over units", *(plain(each.name) for each in comparison.adapters), *["chance"] * has_chance)
    for row in dataset.rows:
        cells = []
        for adapter in comparison.adapters:
            value, *more = mean_text(row, row.means[adapter.name])
            cells.append(Text(value) + Text("".join(f"\n{line}" for line in more if line), style="dim"))
        table.add_row(Text(heading(row)), *cells, *[Text(chance_text(row))] * has_chance)
    return table


def _differences(dataset: DatasetRows) -> Table:
    table = _table("difference", "", "95 % CI", "p", "p (Holm)")
    pairs = dict.fromkeys((each.adapter, each.against) for row in dataset.rows for each in row.differences)
    for adapter, against in pairs:
        table.add_row(Text(f"{plain(adapter)} − {plain(against)}", style="bold"))
        for row in dataset.rows:
            for each in row.differences:
                if (each.adapter, each.against) == (adapter, against):
                    text = difference_text(each)
                    # a space where there is no mark keeps the digits below each other
                    change = Text(f"{text.change}{text.mark or ' '}", style="bold" if text.mark else "")
                    table.add_row(Text(f"  {difference_heading(row)}"), change, text.interval, text.p, text.p_holm)
    return table
