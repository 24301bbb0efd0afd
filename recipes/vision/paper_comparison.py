"""The paper's Table 1 beside ours, where the two can be compared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monolora.recipes.vision.results import ORDER, SHORT, TITLES, Autoencoder, Gathered, Pretrained, Probed
from monolora.recipes.vision.settings import Data
from monolora.reporting.numbers import interval_caption
from monolora.stats import Estimate, difference, estimate

RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CLASSES = 100

# Accuracy in %, of the linear probe trained with each of RATES' shares of wrong labels.
TABLE1: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "CIFAR-100": {
        "simclr": (54.5, 53.4, 52.8, 52.1, 51.2, 49.9, 49.5, 48.0, 45.0, 35.7),
        "sae": (54.4, 53.9, 53.4, 52.9, 51.9, 51.3, 50.5, 49.7, 47.1, 39.1),
        "ncl": (52.8, 53.9, 53.5, 52.6, 52.6, 52.3, 51.4, 49.5, 48.0, 44.9),
    },
    "ImageNet-100": {
        "simclr": (66.8, 63.1, 61.8, 60.1, 58.8, 56.4, 54.9, 53.1, 48.9, 34.4),
        "sae": (66.2, 65.3, 62.3, 60.5, 59.8, 59.7, 58.5, 55.9, 54.3, 45.9),
        "ncl": (66.7, 65.4, 64.4, 63.9, 62.4, 62.3, 60.6, 59.8, 57.6, 48.1),
    },
}

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "pretrain": {
        "epochs": 200,
        "batch_size": 256,
        "width": 64,
        "projector_hidden": 16384,
        "projector_out": 2048,
    },
    "sae": {"k": 256},
    "probe": {"epochs": 50},
}


def half_of(dataset: str) -> str | None:
    """The half of Table 1 that is of a data set, by its id or folder; None if the paper has none."""
    name = re.sub(r"[^a-z0-9]", "", Path(dataset).name.lower())
    return "CIFAR-100" if "cifar100" in name else "ImageNet-100" if "imagenet" in name else None


def accuracy(half: str | None, representation: str, rate: float) -> float | None:
    """The paper's accuracy in %, where it has one."""
    place = next((place for place, each in enumerate(RATES) if abs(each - rate) < 1e-9), None)
    return None if half is None or place is None else TABLE1[half][representation][place]


def gain(half: str | None, representation: str, rate: float) -> float | None:
    """The paper's accuracy less that of its CL, in points.

    Of its accuracies, not as printed: for SAE on ImageNet-100 without noise they differ by 0.6, and it prints 0.4.
    """
    mono, poly = accuracy(half, representation, rate), accuracy(half, "simclr", rate)
    return None if mono is None or poly is None else round(mono - poly, 1)


class Compared(NamedTuple):
    """A run beside the paper.

    Attributes:
        dataset: as people call it.
        half: of Table 1 that is of this data set; None if the paper has none.
        note: what the numbers beside are, and why they are not to be compared, if they are not.
    """

    dataset: str
    half: str | None
    note: str


def compared(runs: Gathered, data: Data) -> Compared:
    """Where a run differs from the paper's.

    Args:
        runs: the records, whose settings count.
        data: the images, for records that do not say.
    """
    recorded = runs.data()
    said = "" if recorded else ", if the runs are of --dataset's images"
    recorded = recorded or {"dataset": data.dataset, "per_class": data.per_class}
    dataset = str(recorded["dataset"])
    half = half_of(dataset)
    name = Path(dataset).name
    if half is None:
        return Compared(name, None, f"The paper has no numbers for {name}.")
    reasons = [*_of_images(runs, recorded), *_of_settings(runs)]
    if half == "ImageNet-100" and "100" not in name:
        reasons.append("its classes may be others than the paper's")
    beside = f"the paper's Table 1, {half}{said}"
    return Compared(name, half, f"{beside}. Not comparable: {'; '.join(reasons)}." if reasons else f"{beside}.")


def _of_images(runs: Gathered, recorded: Mapping[str, Any]) -> Iterator[str]:
    for n_classes in sorted({len(each.classes) for each in runs.probed} - {CLASSES}):
        yield f"{n_classes} classes (paper: {CLASSES})"
    if recorded.get("per_class") is not None:
        yield f"{recorded['per_class']} training images a class (paper: all)"


def _of_settings(runs: Gathered) -> Iterator[str]:
    if not runs.pretrained:
        yield "no record of the pretraining"
    recorded: Mapping[str, Sequence[Pretrained | Autoencoder | Probed]] = {
        "pretrain": runs.pretrained,
        "sae": runs.autoencoders,
        "probe": runs.probed,
    }
    titles = {"pretrain": "pretraining", "sae": "autoencoder", "probe": "probe"}
    for step, wanted in SETTINGS.items():
        for name, paper in wanted.items():
            found = {each.settings.get(name, paper) for each in recorded[step]}
            if step == "pretrain" and name == "epochs":
                found = {each.epochs for each in runs.pretrained}
            if found - {paper}:
                shown = _listed(found)
                yield f"{titles[step]} with {name.replace('_', ' ')} {shown} (paper: {paper})"


def _listed(values: Iterable[Any]) -> str:
    return " and ".join(map(str, sorted(values)))


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
        words = interval_caption({row.title: [cell.estimate for cell in row.cells] for row in rows}, DRAWS)
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
        own = [_cell(rate, estimate(values[name][rate]), accuracy(half, name, rate)) for rate in rates]
        rows.append(Row(name, TITLES[name], own))
        if name != "simclr" and "simclr" in there:
            less = [
                _cell(rate, difference(values[name][rate], values["simclr"][rate]), gain(half, name, rate))
                for rate in rates
            ]
            rows.append(Row(f"{name}-simclr", f"{SHORT[name]} − CL", less))
    return rows


def _cell(rate: float, found: Estimate | None, paper: float | None) -> Cell:
    return Cell(rate, found and found.times(100), paper)
