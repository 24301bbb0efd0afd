"""A comparison in the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from monolora.eval.explain.compare_findings import ALPHA, differs, finding, message
from monolora.eval.explain.compare_records import Comparison, DatasetRows, Difference, Mean, Row
from monolora.eval.explain.compare_statistics import MEASURES
from monolora.eval.explain.score_report import RANDOM, ScoreTable, compared_tables, score_tables, show_scores
from monolora.reporting.html import chart_style, rendered
from monolora.reporting.numbers import (
    NOTHING,
    Tick,
    format_change,
    format_interval,
    format_number,
    format_p,
    plain,
    round_step,
)
from monolora.reporting.palette import colour_name
from monolora.terminal import Terminal

MARK = "*"


class DifferenceText(NamedTuple):
    """A difference as shown; ``mark`` is empty where it could be chance."""

    change: str
    mark: str
    interval: str
    p: str
    p_holm: str


class MeanText(NamedTuple):
    """A mean as shown; ``interval`` is empty where there is none, ``units`` where it is of all of them."""

    value: str
    interval: str
    units: str


def heading(row: Row) -> str:
    """``sparsity, %``."""
    return f"{row.title}, {row.unit}" if row.unit else row.title


def difference_heading(row: Row) -> str:
    """The heading of a difference: percentages differ by percentage points."""
    return heading(replace(row, unit="pp") if row.unit == "%" else row)


def mean_text(row: Row, mean: Mean) -> MeanText:
    """A mean with its interval. All values of a row have the same number of decimals."""
    decimals = _decimals(*(mean.value for mean in row.means.values()))
    return MeanText(
        format_number(mean.value, decimals),
        format_interval(mean.low, mean.high, decimals),
        f"n = {mean.features:,} of {mean.total:,}" if mean.features < mean.total else "",
    )


def chance_text(row: Row) -> str:
    """A row's value by chance; empty where unknown."""
    means = (mean.value for mean in row.means.values())
    return "" if row.chance is None else format_number(row.chance, _decimals(*means))


def difference_text(difference: Difference) -> DifferenceText:
    """A difference with its interval and p-values."""
    decimals = _decimals(difference.value, difference.low, difference.high)
    return DifferenceText(
        format_change(difference.value, decimals),
        MARK if differs(difference) else "",
        format_interval(difference.low, difference.high, decimals, changes=True) or NOTHING,
        format_p(difference.p),
        format_p(difference.p_holm),
    )


def about(dataset: DatasetRows) -> str:
    """Numbers of texts and tokens."""
    tokens = {f"{count:,}" for count in dataset.tokens.values()}
    if len(tokens) == 1:
        return f"{dataset.texts:,} texts, {tokens.pop()} tokens."
    counts = ", ".join(f"{plain(name)} {count:,}" for name, count in dataset.tokens.items())
    return f"{dataset.texts:,} texts; tokens: {counts}."


def remarks(comparison: Comparison) -> list[str]:
    """How to read the tables."""
    first, *others = comparison.adapters
    sentences = [
        "Sparsity is the share of activations that are 0; a dead unit's all are, an always-on unit's none. Consistency "
        "is the share of the most frequent label among the texts on which a unit fires, or which excite it most. "
        "Information is that of a text's mean activation on its label; q is the false discovery rate of there being "
        "any. Effect is the norm of what a unit adds to its module's output, in percent of the norm of that output.",
        f"Values are means over units; in brackets are 95 % confidence intervals (bootstrap over adapted modules, "
        f"{comparison.resamples:,} resamples). They cover which modules an adapter has, not other texts and not "
        "another training run.",
        f"{MARK} differs (p < {ALPHA} after Holm's correction for {comparison.tests} tests).",
        "A unit that fires on every text has the share of the most frequent label as its consistency, whatever it "
        "does: compare the consistency of live units together with the sparsity, or that of the strongest texts with "
        "chance.",
    ]
    means = [mean for dataset in comparison.datasets for row in dataset.rows for mean in row.means.values()]
    if any(mean.features < mean.total for mean in means):
        strongest = " or ".join(map(str, sorted({dataset.strongest for dataset in comparison.datasets})))
        sentences.append(
            "n is how many units have a value (of signed units, how many of their ends), where not all do. One that "
            f"never fires has no consistency, and one that excites fewer than {strongest} texts none of the strongest "
            "texts: the means leave these, the sparsest units, out."
        )
    if any(adapter.model != first.model for adapter in others):
        sentences.append("The adapters are of different base models: modules of the same name were taken as pairs.")
    if comparison.left_out:
        sentences.append(f"Left out, as not all adapters have them: {', '.join(map(plain, comparison.left_out))}.")
    return sentences


def _decimals(*values: float | None) -> int:
    """Decimals for three significant digits of the largest value, six at most."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return 1 if largest == 0 else min(6, max(1, 2 - math.floor(math.log10(largest))))


Floats = NDArray[np.float64]

_STEPS = 200  # of a curve
_DECADES = 5  # of a logarithmic axis, at most
_LOGARITHMIC = {measure.id for measure in MEASURES if measure.is_logarithmic}


class Curve(NamedTuple):
    """One adapter's units: ``points`` are of an SVG polyline, y from the top; ``colour`` is its class."""

    adapter: str
    colour: str
    median: str
    points: str


class Panel(NamedTuple):
    """The distribution of a measure over the units of every adapter.

    Attributes:
        title: what is measured.
        finding: what it shows, a sentence.
        ticks: of its axis.
        curves: one an adapter that has values.
    """

    title: str
    finding: str
    ticks: list[Tick]
    curves: list[Curve]


def panels(dataset: DatasetRows) -> list[Panel]:
    """One panel a measure whose distribution is shown."""
    return [_panel(row) for row in dataset.rows if row.values]


def cumulative(values_F: Floats, at: Floats) -> Floats:
    """The share of the values that are not above each position."""
    return np.searchsorted(np.sort(values_F), at, side="right") / len(values_F)


def _panel(row: Row) -> Panel:
    known = {name: value_F[~np.isnan(value_F)] for name, value_F in row.values.items()}
    every = np.concatenate(list(known.values()))
    is_log = row.id in _LOGARITHMIC and bool((every > 0).any())
    ticks = _decades(every[every > 0]) if is_log else _round_numbers(float(every.min()), float(every.max()))
    low, high = ticks[0], ticks[-1]
    at = np.geomspace(low, high, _STEPS + 1) if is_log else np.linspace(low, high, _STEPS + 1)
    at[-1] = high  # rounding must not leave the largest value out
    curves = [
        Curve(name, colour_name(index), f"{np.median(values_F):.3g}", _points(cumulative(values_F, at)))
        for index, (name, values_F) in enumerate(known.items())
        if len(values_F)
    ]
    positions = np.log(np.array(ticks) / low) / np.log(high / low) if is_log else (np.array(ticks) - low) / (high - low)
    labels = [f"{tick:.3g}" for tick in ticks]
    axis_ticks = [
        Tick(round(100 * float(position), 3), label) for position, label in zip(positions, labels, strict=True)
    ]
    return Panel(heading(row), finding(row), axis_ticks, curves)


def _points(share_S: Iterable[float]) -> str:
    """A line of steps from the bottom: as far as the last step each share holds, then up."""
    points, before = ["0,100"], 0.0
    for step, share in enumerate(share_S):
        if share != before:
            x = 100 * step / _STEPS
            points += [f"{x:g},{100 * (1 - before):.4g}", f"{x:g},{100 * (1 - share):.4g}"]
            before = share
    return " ".join([*points, f"100,{100 * (1 - before):.4g}"])


def _round_numbers(low: float, high: float) -> list[float]:
    """Some five round numbers that enclose both; a scale that can begin at zero does."""
    low = 0.0 if 0 <= low < 0.6 * high else low
    if high - low <= 1e-9 * abs(high):
        low, high = low - 0.5, high + 0.5
    step = round_step((high - low) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _decades(positive: Floats) -> list[float]:
    """Powers of ten that enclose the values, or the upper ones of too many."""
    high = math.ceil(math.log10(float(positive.max())) - 1e-9)
    low = max(min(math.floor(math.log10(float(positive.min()))), high - 1), high - _DECADES)
    return [10.0**power for power in range(low, high + 1)]


_FOLDER = Path(__file__).parent / "compare_page"


class Part(NamedTuple):
    """One data set on the page.

    Attributes:
        name: of it.
        about: how many texts and tokens.
        means: heading, means by adapter, and level of chance, of each measure.
        has_chance: whether any measure has one.
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
        title=f"{', '.join(names[:-1])} and {names[-1]}",
        message=message(comparison),
        style=chart_style() + (_FOLDER / "page.css").read_text(encoding="utf-8"),
        comparison=comparison,
        parts=[_part(dataset, names) for dataset in comparison.datasets],
        colours={name: colour_name(index) for index, name in enumerate(names)},
        remarks=remarks(comparison),
        scores=all_scores(comparison),
        random=RANDOM,
    )


def _part(dataset: DatasetRows, names: list[str]) -> Part:
    differences: dict[tuple[str, str], list[tuple[str, DifferenceText]]] = {}
    for row in dataset.rows:
        for difference in row.differences:
            differences.setdefault((difference.adapter, difference.against), []).append(
                (difference_heading(row), difference_text(difference))
            )
    return Part(
        dataset.name,
        about(dataset),
        [(heading(row), [mean_text(row, row.means[name]) for name in names], chance_text(row)) for row in dataset.rows],
        any(chance_text(row) for row in dataset.rows),
        differences,
        panels(dataset),
    )


def show(comparison: Comparison, console: Terminal) -> None:
    """Print the tables and how to read them."""
    for dataset in comparison.datasets:
        console.print(Text(f"{plain(dataset.name)}: {about(dataset)}", style="bold"))
        console.print()
        console.print(_means(comparison, dataset))
        console.print()
        console.print(_differences(dataset))
        console.print()
    show_scores(all_scores(comparison), console)
    for remark in remarks(comparison):
        console.print(Text(remark))


def all_scores(comparison: Comparison) -> list[ScoreTable]:
    """The adapters' scores side by side, then the stability of their units."""
    return [
        *compared_tables(comparison.scores),
        *(table for found in comparison.stability for table in score_tables(found.scores)),
    ]


def _table(*titles: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, title in enumerate(titles):
        table.add_column(Text(title), justify="right" if number else "left", overflow="fold", vertical="top")
    return table


def _means(comparison: Comparison, dataset: DatasetRows) -> Table:
    has_chance = any(chance_text(row) for row in dataset.rows)
    names = [plain(adapter.name) for adapter in comparison.adapters]
    table = _table("mean over units", *names, *["chance"] * has_chance)
    for row in dataset.rows:
        cells = []
        for adapter in comparison.adapters:
            value, *more = mean_text(row, row.means[adapter.name])
            cells.append(Text(value) + Text("".join(f"\n{line}" for line in more if line), style="dim"))
        table.add_row(Text(heading(row)), *cells, *[Text(chance_text(row))] * has_chance)
    return table


def _differences(dataset: DatasetRows) -> Table:
    table = _table("difference", "", "95 % CI", "p", "p (Holm)")
    pairs = dict.fromkeys((change.adapter, change.against) for row in dataset.rows for change in row.differences)
    for adapter, against in pairs:
        table.add_row(Text(f"{plain(adapter)} − {plain(against)}", style="bold"))
        for row in dataset.rows:
            for change in row.differences:
                if (change.adapter, change.against) == (adapter, against):
                    text = difference_text(change)
                    # a space where there is no mark keeps the digits below each other
                    marked = Text(f"{text.change}{text.mark or ' '}", style="bold" if text.mark else "")
                    table.add_row(Text(f"  {difference_heading(row)}"), marked, text.interval, text.p, text.p_holm)
    return table
