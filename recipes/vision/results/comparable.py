"""Whether a run's numbers may be compared with the paper's, and why not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monolora.recipes.vision.results.gathered import Autoencoder, Gathered, Pretrained, Probed
from monolora.recipes.vision.results.paper_numbers import CLASSES, SETTINGS, half_of
from monolora.recipes.vision.settings import Data


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
