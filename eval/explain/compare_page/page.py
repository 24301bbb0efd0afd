"""``comparison.html``: the tables and the distributions behind them, on one page that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from monolora.eval.explain.compare_page.distributions import Panel, panels
from monolora.eval.explain.compare_records import Comparison, DatasetRows
from monolora.eval.explain.compare_text import (
    DifferenceText,
    MeanText,
    about,
    chance_text,
    difference_heading,
    difference_text,
    heading,
    mean_text,
    remarks,
)
from monolora.eval.pages.render import rendered

_FOLDER = Path(__file__).parent


class Part(NamedTuple):
    """What the page shows of one data set.

    Attributes:
        name: of it.
        about: how many texts and tokens.
        means: heading, means by adapter, and level of chance, of each measure.
        has_chance: whether any of them has one.
        differences: heading and difference of each measure, by pair of adapters.
        panels: distributions over units.
    """

    name: str
    about: str
    means: list[tuple[str, list[MeanText], str]]
    has_chance: bool
    differences: dict[tuple[str, str], list[tuple[str, DifferenceText]]]
    panels: list[Panel]


def page(comparison: Comparison) -> str:
    """The whole page; it has no script, and its policy lets none run."""
    names = [adapter.name for adapter in comparison.adapters]
    return rendered(
        _FOLDER,
        "page.html.j2",
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        script="",
        title=f"{', '.join(names[:-1])} and {names[-1]}",
        comparison=comparison,
        parts=[_part(dataset, names) for dataset in comparison.datasets],
        colours={name: place % 8 + 1 for place, name in enumerate(names)},
        remarks=remarks(comparison),
    )


def _part(dataset: DatasetRows, names: list[str]) -> Part:
    differences: dict[tuple[str, str], list[tuple[str, DifferenceText]]] = {}
    for row in dataset.rows:
        for each in row.differences:
            differences.setdefault((each.adapter, each.against), []).append(
                (difference_heading(row), difference_text(each))
            )
    return Part(
        dataset.name,
        about(dataset),
        [(heading(row), [mean_text(row, row.means[name]) for name in names], chance_text(row)) for row in dataset.rows],
        any(chance_text(row) for row in dataset.rows),
        differences,
        panels(dataset),
    )
