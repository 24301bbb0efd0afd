"""What ``monolora explain`` prints: the data sets, and the units of the largest effect."""

from __future__ import annotations

import numpy as np
from rich.table import Table
from rich.text import Text

from monolora.eval.explain.page.explorer_data import module_parts
from monolora.eval.explain.records import DatasetFeatures, Explained
from monolora.eval.report.numbers import plain
from monolora.terminal import Terminal

_ROWS = 10


def summary(explained: Explained, console: Terminal) -> None:
    """Print it. Texts of safety sets are not shown, nor their tokens."""
    for dataset in explained.datasets:
        console.print(_table(explained, dataset))
        console.print(Text(_facts(dataset)))
        console.print()


def _facts(dataset: DatasetFeatures) -> str:
    dead, always = int((dataset.firing == 0).sum()), int((dataset.firing == 1).sum())
    facts = (
        f"{len(dataset.firing)} units on {dataset.tokens:,} tokens of {dataset.texts:,} texts: "
        f"{1 - dataset.firing.mean():.1%} of activations are 0; {dead} units never fire, {always} on every token."
    )
    if dataset.labels:
        facts += _of_labels(dataset)
    return plain(f"{facts} {dataset.note}".rstrip())


def _of_labels(dataset: DatasetFeatures) -> str:
    found = np.concatenate([end.consistency for end in dataset.ends])
    whole = found[~np.isnan(found)]
    said = f" {int((dataset.information_q < 0.05).sum())} units go with the label (q < 0.05)."
    if not len(whole):
        return f" No unit is excited by {dataset.strongest} texts or more.{said}"
    return (
        f" Of the {dataset.strongest} texts that excite a unit most, {whole.mean():.1%} have the same label "
        f"({dataset.chance:.1%} by chance).{said}"
    )


def _table(explained: Explained, dataset: DatasetFeatures) -> Table:
    rows = _rows(explained, dataset)
    heading = Text(f"Units of the largest effect on {plain(dataset.name)}")
    table = Table(title=heading, title_justify="left", box=None)
    for place, title in enumerate(("unit", "effect", "fires on", "bits")):
        # on a narrow terminal, only the columns after these give way
        width = max(len(title), *(len(row[place]) for row in rows))
        table.add_column(title, justify="right" if place else "left", no_wrap=True, min_width=width)
    for title in ("strongest texts", "tokens"):
        table.add_column(title, overflow="ellipsis", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _rows(explained: Explained, dataset: DatasetFeatures) -> list[tuple[str, ...]]:
    parts = {each.name: each for each in module_parts(dict.fromkeys(unit.module for unit in explained.units))}
    end = dataset.ends[0]
    rows: list[tuple[str, ...]] = []
    for unit in np.argsort(-dataset.effect, kind="stable")[:_ROWS].tolist():
        label = "–" if end.label[unit] is None else f"{end.consistency[unit]:.0%} {plain(str(end.label[unit]))}"
        bits = "–" if np.isnan(dataset.information[unit]) else f"{dataset.information[unit]:.3f}"
        tokens = "(not shown)" if dataset.is_gated else " ".join(repr(each.token) for each in end.tokens[unit][:4])
        short = f"{parts[explained.units[unit].module].short} {explained.units[unit].unit}"
        rows.append((short, f"{dataset.effect[unit]:.2%}", f"{dataset.firing[unit]:.0%}", bits, label, tokens))
    return rows
