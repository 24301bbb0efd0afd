"""Scores as tables: a line for each number of units, a column for each sparsity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from monolora.eval.explain.records import Score
from monolora.reporting.numbers import NOTHING, format_interval, format_number, plain
from monolora.stats import Estimate
from monolora.terminal import Terminal

ALPHA = 0.05


class Kind(NamedTuple):
    """A score's title, unit and decimals, and what it says in a sentence."""

    title: str
    unit: str
    decimals: int
    note: str


KINDS = {
    "probe": Kind(
        "Sparse probing",
        "%",
        1,
        "Balanced accuracy of a logistic probe on mean activations, on texts that neither selected the units nor "
        "fitted it; chance is 50 %.",
    ),
    "targeted": Kind(
        "Targeted probe perturbation",
        "pp",
        1,
        "How much the accuracy of a label's probe on all units falls when the units selected for it are set to 0, less "
        "how much the probes of the other labels fall; the mean over labels.",
    ),
    "correlation": Kind(
        "Faithfulness",
        "r",
        2,
        "Correlation, over prompts, of how strongly a unit fires on a prompt with how far the next token moves there "
        "when it is taken out (square root of the KL); the mean over the units that were taken out one at a time.",
    ),
    "explained": Kind(
        "Faithfulness",
        "R²",
        2,
        "The share of the variance of these effects over prompts that a line through a unit's activations explains; "
        "the mean over units. It is above 0 by chance too, for random units as much.",
    ),
    "ranking": Kind(
        "Effect as a prediction",
        "Spearman's ρ",
        2,
        "Rank correlation, over the units that were taken out, of the effect that is predicted (what the unit adds to "
        "its module's output) with the mean of the measured ones.",
    ),
    "stability": Kind(
        "Stability",
        "|r|",
        2,
        "Mean size of the correlation, over tokens, of the activations of units of two adapters that were matched "
        "module by module (Hungarian method); random: the first's units, matched with random ones for the second's.",
    ),
}
RANDOM = (
    "Below each score: its 95 % interval (bootstrap over texts), and the score of random units of the same modules "
    f"that fire as often. * differs from these (p < {ALPHA}, not corrected)."
)


class Cell(NamedTuple):
    """A score as shown; empty texts for what there is none of."""

    value: str
    interval: str
    random: str
    differs: bool


class ScoreTable(NamedTuple):
    """The scores of one kind on one label or measure.

    Attributes:
        title: with data set, unit and number of texts.
        note: what it is.
        heads: of the columns.
        lines: number of units, and a cell for each column.
    """

    title: str
    note: str
    heads: list[str]
    lines: list[tuple[str, list[Cell]]]


def score_tables(scores: Iterable[Score]) -> list[ScoreTable]:
    """The tables, in the order of the scores."""
    return compared_tables({"": scores})


def compared_tables(by_adapter: Mapping[str, Iterable[Score]]) -> list[ScoreTable]:
    """The tables of several adapters' scores, whose lines end with the adapter's name."""
    tables: dict[tuple[str, str, str], dict[tuple[int | None, str], list[Score]]] = {}
    for name, scores in by_adapter.items():
        for score in scores:
            lines = tables.setdefault((score.kind, score.dataset, score.of), {})
            lines.setdefault((score.units, name), []).append(score)
    return [_table(lines) for lines in tables.values()]


def _table(lines: Mapping[tuple[int | None, str], list[Score]]) -> ScoreTable:
    first = next(iter(lines.values()))[0]
    kind = KINDS[first.kind]
    order = list(dict.fromkeys(units for units, _ in lines))
    shares = list(dict.fromkeys(score.share for scores in lines.values() for score in scores))
    return ScoreTable(
        f"{kind.title}: {plain(first.dataset)}, {plain(first.of)}, {kind.unit}, {first.texts:,} texts",
        kind.note,
        [share_title(share) for share in shares],
        [
            (", ".join(filter(None, (units_title(units), plain(name)))), [_cell(score, kind) for score in scores])
            for (units, name), scores in sorted(lines.items(), key=lambda line: order.index(line[0][0]))
        ],
    )


def share_title(share: float) -> str:
    """The head of a column."""
    return "as trained" if share == 1 else f"on ≤ {100 * share:g} %"


def units_title(units: int | None) -> str:
    """The head of a line."""
    return "all" if units is None else f"{units} unit{'s' if units > 1 else ''}"


def _cell(score: Score, kind: Kind) -> Cell:
    difference = score.difference
    return Cell(
        _number(score.own, kind.decimals),
        "" if score.own is None else format_interval(score.own.low, score.own.high, kind.decimals),
        "" if score.random is None else f"random {_number(score.random, kind.decimals)}",
        difference is not None and difference.p is not None and difference.p < ALPHA,
    )


def _number(estimate: Estimate | None, decimals: int) -> str:
    return NOTHING if estimate is None else format_number(estimate.mean, decimals)


def show_scores(tables: Sequence[ScoreTable], console: Terminal) -> None:
    """Print tables, and how to read them."""
    for table in tables:
        console.print(Text(table.title, style="bold"))
        console.print(_rich_table(table))
        console.print(Text(table.note))
        console.print()
    if tables:
        console.print(Text(RANDOM))
        console.print()


def _rich_table(table: ScoreTable) -> Table:
    printed = Table(box=None, padding=(0, 2, 0, 0))
    for number, head in enumerate(["units", *table.heads]):
        printed.add_column(Text(head), justify="right" if number else "left", vertical="top")
    for units, cells in table.lines:
        texts = [
            Text(f"{cell.value}{'*' if cell.differs else ' '}")
            + Text("".join(f"\n{line} " for line in (cell.interval, cell.random) if line), style="dim")
            for cell in cells
        ]
        printed.add_row(Text(units), *texts)
    return printed
