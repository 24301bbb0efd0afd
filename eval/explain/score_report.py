"""Scores as tables: a line for each number of units, a column for each sparsity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from monolora.eval.explain.records import Score
from monolora.reporting.numbers import NOTHING, format_interval, format_number, plain
from monolora.stats import Estimate

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
    return [_table(list(group)) for _, group in groupby(scores, lambda score: (score.kind, score.dataset, score.of))]


def heading(score: Score) -> str:
    """``Sparse probing: sst2, positive``."""
    return f"{KINDS[score.kind].title}: {plain(score.dataset)}, {plain(score.of)}"


def _table(scores: Sequence[Score]) -> ScoreTable:
    first = scores[0]
    kind = KINDS[first.kind]
    shares = list(dict.fromkeys(score.share for score in scores))
    cells = {(score.units, score.share): _cell(score, kind) for score in scores}
    return ScoreTable(
        f"{heading(first)}, {kind.unit}, {first.texts:,} texts",
        kind.note,
        [share_title(share) for share in shares],
        [
            (units_title(units), [cells[units, share] for share in shares])
            for units in dict.fromkeys(score.units for score in scores)
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


def rich_table(table: ScoreTable) -> Table:
    """The table for a terminal."""
    printed = Table(title=Text(table.title), title_justify="left", box=None, padding=(0, 2, 0, 0))
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
