"""The records of all steps in a folder, as typed values. Steps that have not run simply have no records."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from monolora.errors import InputError, in_one_line
from monolora.recipes.experiment_steps import read
from monolora.recipes.vision.settings import METHODS
from monolora.stats import BySeed

ORDER = ("simclr", "sae", "ncl")  # of rows and lines, as in the paper's Table 1
TITLES = {"simclr": "Poly (CL)", "sae": "Mono (SAE)", "ncl": "Mono (NCL)"}
SHORT = {"simclr": "CL", "sae": "SAE", "ncl": "NCL"}

# For captions: where consistency says nothing.
DENSE_NOTE = "A dimension that all images activate, as CL's do, has the share of the largest class: near chance."

ByStrength = Mapping[float, Sequence[float]]  # by noise rate or scale, the accuracy of each classifier
_T = TypeVar("_T")


class ProbeRecord(NamedTuple):
    """The linear classifiers on one representation; accuracies from 0 to 1.

    Attributes:
        accuracy: by loss and noise rate, on clean validation labels.
        input_noise: by kind and scale, of classifiers trained on clean labels.
        ood: by the name of the images, of the same classifiers.
    """

    representation: str
    seed: int
    settings: Mapping[str, Any]
    classes: Sequence[str]
    accuracy: Mapping[str, ByStrength]
    input_noise: Mapping[str, ByStrength]
    ood: Mapping[str, Sequence[float]]


class FinetuneRun(NamedTuple):
    """One finetuned copy of an encoder; accuracies from 0 to 1, one for each epoch."""

    seed: int
    objective: str
    fraction: float
    noise_rate: float
    draw: int
    train_accuracy: Sequence[float]
    val_accuracy: Sequence[float]


class Dimension(NamedTuple):
    """A dimension and the validation images that activate it most.

    Attributes:
        consistency: None if no image activates it.
        images: indices of validation images.
    """

    dimension: int
    consistency: float | None
    images: Sequence[int]


class SalientDimension(NamedTuple):
    """The dimension with the largest weight for a class; the class's accuracy from 0 to 1."""

    class_name: str
    accuracy: float
    dimension: Dimension


class ConsistencyRecord(NamedTuple):
    """The semantic consistency of one representation.

    Attributes:
        inputs: fingerprints of the features and classifiers that it was measured on.
        consistency: mean over the live dimensions.
        zeros: share of zero activations.
        right, wrong: for each label seed, the mean consistency of the most activated dimensions of the images that
            the classifier gets right, and of those that it gets wrong.
    """

    representation: str
    seed: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    consistency: float | None
    live: int
    dimensions: int
    zeros: float
    right: Sequence[float]
    wrong: Sequence[float]
    random_dimensions: Sequence[Dimension]
    best: SalientDimension
    worst: SalientDimension


class AutoencoderRecord(NamedTuple):
    """A sparse autoencoder: the variance explained on validation images, the share of latents dead in training."""

    seed: int
    settings: Mapping[str, Any]
    explained: float
    dead: float


class PretrainRecord(NamedTuple):
    """An encoder; the accuracy of its online classifier from 0 to 1."""

    method: str
    seed: int
    settings: Mapping[str, Any]
    epochs: int
    probe_accuracy: float | None


class Records(NamedTuple):
    """All records of a folder."""

    probe_records: Sequence[ProbeRecord]
    finetune_runs: Sequence[FinetuneRun]
    consistency_records: Sequence[ConsistencyRecord]
    autoencoder_records: Sequence[AutoencoderRecord]
    pretrain_records: Sequence[PretrainRecord]

    def probe_values(self, representation: str, values: Callable[[ProbeRecord], Sequence[float]]) -> BySeed:
        """One value for each classifier, by seed."""
        return {record.seed: values(record) for record in self.probe_records if record.representation == representation}

    def accuracy(self, representation: str, loss: str, rate: float) -> BySeed:
        """Accuracies of the classifiers trained with a loss and a share of wrong labels."""
        return self.probe_values(representation, lambda record: record.accuracy.get(loss, {}).get(rate, ()))

    def input_noise(self, representation: str, kind: str, scale: float) -> BySeed:
        """Accuracies of classifiers trained on clean labels, on validation images with noise."""
        return self.probe_values(representation, lambda record: record.input_noise.get(kind, {}).get(scale, ()))

    def ood(self, representation: str, images: str) -> BySeed:
        """Accuracies of the same classifiers on images of another kind, by their name."""
        return self.probe_values(representation, lambda record: record.ood.get(images, ()))

    def rates(self, loss: str) -> list[float]:
        """All noise rates that a loss was used with."""
        return sorted({rate for record in self.probe_records for rate in record.accuracy.get(loss, ())})

    def losses(self) -> list[str]:
        """The losses that classifiers were trained with, cross entropy first."""
        return sorted({loss for record in self.probe_records for loss in record.accuracy})

    def data_settings(self) -> Mapping[str, Any] | None:
        """The settings of the images, if a record has them."""
        all_settings = [
            record.settings
            for records in (self.probe_records, self.pretrain_records, self.consistency_records)
            for record in records
        ]
        return next((settings["data"] for settings in all_settings if isinstance(settings.get("data"), dict)), None)


def read_records(out: str | Path) -> Records:
    """Read the records of a folder of runs.

    Raises:
        InputError: if there are none at all, or one is damaged.
    """
    root = Path(out)
    records = Records(
        probe_records=[_read(path, _probe_record, *key) for path, *key in _named(root / "probe", "*.json", ORDER)],
        finetune_runs=[
            run
            for path, _, seed in _named(root / "finetune", "*.json", ("",))
            for run in _read(path, _finetune_runs, seed)
        ],
        consistency_records=[
            _read(path, _consistency_record, *key) for path, *key in _named(root / "consistency", "*.json", ORDER)
        ],
        autoencoder_records=[
            _read(path / "sae.json", _autoencoder_record, seed)
            for path, _, seed in _named(root, "sae-*", ("sae",))
            if (path / "sae.json").is_file()
        ],
        pretrain_records=[
            _read(path / "pretrain.json", _pretrain_record, *key)
            for path, *key in _named(root, "*", METHODS)
            if (path / "pretrain.json").is_file()
        ],
    )
    if not any(records):
        raise InputError(f"{root} has no results. Run the steps first: monolora vision all --out {root}.")
    return records


def _named(folder: Path, pattern: str, names: Sequence[str]) -> Iterator[tuple[Path, str, int]]:
    """Paths called ``NAME-SEED`` (``SEED`` for the name ""), by name in the given order, then by seed."""
    matches = []
    for path in folder.glob(pattern):
        parts = re.fullmatch(r"(?:([a-z]+)-)?(-?\d+)", path.name.removesuffix(".json"))
        if parts and (parts[1] or "") in names:
            matches.append((names.index(parts[1] or ""), int(parts[2]), path))
    for name_index, seed, path in sorted(matches):
        yield path, names[name_index], seed


def _read(path: Path, parse: Callable[..., _T], *key: Any) -> _T:
    fix = "Run its step again."
    record = read(path, fix)
    try:
        return parse(record, *key)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{error} is missing." if isinstance(error, KeyError) else in_one_line(error)
        raise InputError(f"{path} is damaged: {problem} Delete it. {fix}") from error


def _probe_record(record: dict[str, Any], representation: str, seed: int) -> ProbeRecord:
    results = record["results"]
    return ProbeRecord(
        representation, seed, record["settings"], results["classes"],
        accuracy={loss: _by_strength(rates) for loss, rates in results["accuracy"].items()},
        input_noise={kind: _by_strength(scales) for kind, scales in results["input_noise"].items()},
        ood=dict(results["ood"]),
    )  # fmt: skip


def _by_strength(accuracy: Mapping[str, Sequence[float]]) -> ByStrength:
    return {float(strength): list(values) for strength, values in accuracy.items()}


def _finetune_runs(record: dict[str, Any], seed: int) -> list[FinetuneRun]:
    return [
        FinetuneRun(
            seed, run["objective"], float(run["fraction"]), float(run["noise_rate"]), run["draw"],
            run["train_accuracy"], run["val_accuracy"],
        )
        for run in record["results"]["runs"]
    ]  # fmt: skip


def _consistency_record(record: dict[str, Any], representation: str, seed: int) -> ConsistencyRecord:
    results = record["results"]
    return ConsistencyRecord(
        representation, seed, record["settings"], record["inputs"],
        results["consistency"], results["live"], results["dimensions"], results["zeros"],
        # null where a classifier got no image right, or none wrong
        right=[value for value in results["right"] if value is not None],
        wrong=[value for value in results["wrong"] if value is not None],
        random_dimensions=[_dimension(entry) for entry in results["random_dimensions"]],
        best=_salient(results["best_class"]), worst=_salient(results["worst_class"]),
    )  # fmt: skip


def _salient(entry: Mapping[str, Any]) -> SalientDimension:
    return SalientDimension(entry["class"], entry["accuracy"], _dimension(entry))


def _dimension(entry: Mapping[str, Any]) -> Dimension:
    return Dimension(entry["dimension"], entry["consistency"], entry["images"])


def _autoencoder_record(record: dict[str, Any], seed: int) -> AutoencoderRecord:
    results = record["results"]
    return AutoencoderRecord(seed, record["settings"], results["explained_variance"]["val"], results["dead"])


def _pretrain_record(record: dict[str, Any], method: str, seed: int) -> PretrainRecord:
    results = record["results"]
    return PretrainRecord(method, seed, record["settings"], results["epochs"], results["probe_accuracy"])
