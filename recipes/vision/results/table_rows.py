"""What Table 1 shows: a mean and an interval for each representation, loss and noise rate, and the paper's number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from monolora.recipes.experiments.intervals import Estimate, difference, estimate, in_words
from monolora.recipes.vision.results import paper_numbers
from monolora.recipes.vision.results.comparable import Compared
from monolora.recipes.vision.results.gathered import ORDER, SHORT, TITLES, Gathered

DRAWS = "draws of wrong labels"


class Cell(NamedTuple):
    """A number, in % or points, and the paper's."""

    rate: float
    estimate: Estimate | None
    paper: float | None


class Row(NamedTuple):
    """A representation, or the difference of one and CL.

    Attributes:
        key: ``sae``, or ``sae-simclr`` for the difference.
        title: for people.
        cells: one a noise rate.
    """

    key: str
    title: str
    cells: Sequence[Cell]

    @property
    def is_difference(self) -> bool:
        """Whether its numbers want a sign."""
        return "-" in self.key


class Block(NamedTuple):
    """The table of one loss.

    Attributes:
        loss: ``ce`` or ``sce``.
        title: what it shows.
        rows: in the paper's order.
        caption: what the intervals are over, and what the paper's numbers are.
    """

    loss: str
    title: str
    rows: Sequence[Row]
    caption: str


def tables(runs: Gathered, beside: Compared) -> list[Block]:
    """One table a loss: the paper's with cross entropy; with symmetric cross entropy what Figure 6 shows."""
    found = []
    for loss in runs.losses():
        rows = _rows(runs, loss, beside.half if loss == "ce" else None)
        words = in_words({row.title: [cell.estimate for cell in row.cells] for row in rows}, DRAWS)
        if any(cell.rate == 0 and cell.estimate and cell.estimate.n == 1 for row in rows for cell in row.cells):
            words += " Without wrong labels all draws are the same: no interval."
        differences = "Differences from CL are paired by run. " if any(row.is_difference for row in rows) else ""
        note = "The paper gives no numbers for this loss."
        if loss == "ce":
            note = beside.note if beside.half is None else f"Rows “paper”: {beside.note}"
        found.append(Block(loss, _title(loss, beside.dataset), rows, f"{words} {differences}{note}"))
    return found


def _title(loss: str, dataset: str) -> str:
    kind = {"ce": "cross entropy", "sce": "symmetric cross entropy"}[loss]
    return f"Linear probe accuracy (%) on {dataset} by training label noise (%), {kind}"


def _rows(runs: Gathered, loss: str, half: str | None) -> list[Row]:
    rates, rows = runs.rates(loss), []
    values = {name: {rate: runs.accuracy(name, loss, rate) for rate in rates} for name in ORDER}
    there = {name for name in ORDER if any(any(each.values()) for each in values[name].values())}
    for name in (each for each in ORDER if each in there):
        own = [_cell(rate, estimate(values[name][rate]), paper_numbers.accuracy(half, name, rate)) for rate in rates]
        rows.append(Row(name, TITLES[name], own))
        if name != "simclr" and "simclr" in there:
            less = [
                _cell(
                    rate, difference(values[name][rate], values["simclr"][rate]), paper_numbers.gain(half, name, rate)
                )
                for rate in rates
            ]
            rows.append(Row(f"{name}-simclr", f"{SHORT[name]} − CL", less))
    return rows


def _cell(rate: float, found: Estimate | None, paper: float | None) -> Cell:
    return Cell(rate, found and found.times(100), paper)
