"""Table 1, ours and the paper's: its numbers, whether a run may be compared with them, and the rows of both.

The paper's numbers are shown with a run's whenever the data set is one of the paper's. ``Comparison.note`` lists the
other settings that differ, so that nobody takes the two for comparable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monolora.recipes.vision.results import (
    ORDER,
    SHORT,
    TITLES,
    AutoencoderRecord,
    PretrainRecord,
    ProbeRecord,
    Records,
)
from monolora.recipes.vision.settings import Data
from monolora.reporting.numbers import interval_caption
from monolora.stats import Estimate, difference, estimate

LABEL_DRAWS = "draws of wrong labels"  # for captions

# The paper's numbers, and the settings they were measured with.
RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CLASSES = 100

# Accuracy in % of linear probes, one for each of RATES' shares of wrong labels.
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
    """The half of the paper's Table 1 that is of a data set, by its id or folder; None if there is none."""
    name = re.sub(r"[^a-z0-9]", "", Path(dataset).name.lower())
    return "CIFAR-100" if "cifar100" in name else "ImageNet-100" if "imagenet" in name else None


def accuracy(half: str | None, representation: str, rate: float) -> float | None:
    """The paper's accuracy in %, where it has one."""
    index = next((index for index, own in enumerate(RATES) if abs(own - rate) < 1e-9), None)
    return None if half is None or index is None else TABLE1[half][representation][index]


def gain(half: str | None, representation: str, rate: float) -> float | None:
    """The paper's accuracy less that of its CL, in percentage points.

    It is computed from the paper's accuracies, not from the gains that it prints: for SAE on ImageNet-100 without noise
    the accuracies differ by 0.6, and the paper prints 0.4.
    """
    mono, poly = accuracy(half, representation, rate), accuracy(half, "simclr", rate)
    return None if mono is None or poly is None else round(mono - poly, 1)


class Comparison(NamedTuple):
    """How a run compares with the paper.

    Attributes:
        dataset: its short name.
        half: the half of Table 1 that is of this data set; None if there is none.
        note: what the paper's numbers are, and why they are not comparable, if they are not.
    """

    dataset: str
    half: str | None
    note: str


def compare(records: Records, data: Data) -> Comparison:
    """Find where a run's settings differ from the paper's.

    Args:
        records: of the run.
        data: settings of the images, for records that do not have them.
    """
    images = records.data_settings()
    proviso = "" if images else ", if the runs are of --dataset's images"
    images = images or {"dataset": data.dataset, "per_class": data.per_class}
    dataset = str(images["dataset"])
    half = half_of(dataset)
    name = Path(dataset).name
    if half is None:
        return Comparison(name, None, f"The paper has no numbers for {name}.")
    reasons = [*_image_differences(records, images), *_setting_differences(records)]
    if half == "ImageNet-100" and "100" not in name:
        reasons.append("its classes may be others than the paper's")
    source = f"the paper's Table 1, {half}{proviso}"
    return Comparison(name, half, f"{source}. Not comparable: {'; '.join(reasons)}." if reasons else f"{source}.")


def _image_differences(records: Records, images: Mapping[str, Any]) -> Iterator[str]:
    for n_classes in sorted({len(record.classes) for record in records.probe_records} - {CLASSES}):
        yield f"{n_classes} classes (paper: {CLASSES})"
    if images.get("per_class") is not None:
        yield f"{images['per_class']} training images a class (paper: all)"


def _setting_differences(records: Records) -> Iterator[str]:
    if not records.pretrain_records:
        yield "no record of the pretraining"
    by_step: Mapping[str, Sequence[PretrainRecord | AutoencoderRecord | ProbeRecord]] = {
        "pretrain": records.pretrain_records,
        "sae": records.autoencoder_records,
        "probe": records.probe_records,
    }
    titles = {"pretrain": "pretraining", "sae": "autoencoder", "probe": "probe"}
    for step, paper_settings in SETTINGS.items():
        for name, paper_value in paper_settings.items():
            values = {record.settings.get(name, paper_value) for record in by_step[step]}
            if step == "pretrain" and name == "epochs":  # those done, not those asked for
                values = {record.epochs for record in records.pretrain_records}
            if values - {paper_value}:
                yield f"{titles[step]} with {name.replace('_', ' ')} {_listed(values)} (paper: {paper_value})"


def _listed(values: Iterable[Any]) -> str:
    return " and ".join(map(str, sorted(values)))


# The rows of both.


class Cell(NamedTuple):
    """A number in % or percentage points, and the paper's."""

    rate: float
    estimate: Estimate | None
    paper: float | None


class Row(NamedTuple):
    """A representation, or its difference from CL.

    Attributes:
        key: ``sae``, or ``sae-simclr`` for the difference.
        title: of the row.
        cells: one for each noise rate.
    """

    key: str
    title: str
    cells: Sequence[Cell]

    @property
    def is_difference(self) -> bool:
        """Whether its numbers are written with their sign."""
        return "-" in self.key


class LossTable(NamedTuple):
    """The table of one loss.

    Attributes:
        loss: ``ce`` or ``sce``.
        title: of the table.
        rows: in the paper's order.
        caption: what the intervals are over, and what the paper's numbers are.
    """

    loss: str
    title: str
    rows: Sequence[Row]
    caption: str


def tables(records: Records, comparison: Comparison) -> list[LossTable]:
    """A table for each loss: cross entropy is the paper's Table 1, symmetric cross entropy the data of its Figure 6."""
    loss_tables = []
    for loss in records.losses():
        rows = _rows(records, loss, comparison.half if loss == "ce" else None)
        caption = interval_caption({row.title: [cell.estimate for cell in row.cells] for row in rows}, LABEL_DRAWS)
        if any(cell.rate == 0 and cell.estimate and cell.estimate.n == 1 for row in rows for cell in row.cells):
            caption += " Without wrong labels all draws are the same: no interval."
        differences = "Differences from CL are paired by run. " if any(row.is_difference for row in rows) else ""
        note = "The paper gives no numbers for this loss."
        if loss == "ce":
            note = comparison.note if comparison.half is None else f"Rows “paper”: {comparison.note}"
        loss_tables.append(LossTable(loss, _title(loss, comparison.dataset), rows, f"{caption} {differences}{note}"))
    return loss_tables


def _title(loss: str, dataset: str) -> str:
    kind = {"ce": "cross entropy", "sce": "symmetric cross entropy"}[loss]
    return f"Linear probe accuracy (%) on {dataset} by training label noise (%), {kind}"


def _rows(records: Records, loss: str, half: str | None) -> list[Row]:
    rates, rows = records.rates(loss), []
    values = {name: {rate: records.accuracy(name, loss, rate) for rate in rates} for name in ORDER}
    names = [name for name in ORDER if any(any(by_seed.values()) for by_seed in values[name].values())]
    for name in names:
        own = [_cell(rate, estimate(values[name][rate]), accuracy(half, name, rate)) for rate in rates]
        rows.append(Row(name, TITLES[name], own))
        if name != "simclr" and "simclr" in names:
            differences = [
                _cell(rate, difference(values[name][rate], values["simclr"][rate]), gain(half, name, rate))
                for rate in rates
            ]
            rows.append(Row(f"{name}-simclr", f"{SHORT[name]} − CL", differences))
    return rows


def _cell(rate: float, share: Estimate | None, paper: float | None) -> Cell:
    return Cell(rate, share and share.times(100), paper)
