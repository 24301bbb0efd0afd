"""What the steps have left in a folder of runs, as values. What is missing is missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from monolora.errors import InputError, in_one_line
from monolora.recipes.experiment_steps import read
from monolora.recipes.vision.settings import METHODS
from monolora.stats import BySeed

ORDER = ("simclr", "sae", "ncl")  # in which people read them, as in the paper's Table 1
TITLES = {"simclr": "Poly (CL)", "sae": "Mono (SAE)", "ncl": "Mono (NCL)"}
SHORT = {"simclr": "CL", "sae": "SAE", "ncl": "NCL"}

# For captions: what consistency cannot tell.
DENSE = "A dimension that all images activate, as CL's do, has the share of the largest class: near chance."

ByStrength = Mapping[float, Sequence[float]]  # by noise rate or scale, the accuracy of each classifier
_T = TypeVar("_T")


class Probed(NamedTuple):
    """Linear classifiers on one representation; accuracies in 0 to 1.

    Attributes:
        accuracy: by loss and noise rate, of clean validation labels.
        input_noise: by kind and scale, of classifiers trained on clean labels.
        ood: by the images' name, of the same.
    """

    representation: str
    seed: int
    settings: Mapping[str, Any]
    classes: Sequence[str]
    accuracy: Mapping[str, ByStrength]
    input_noise: Mapping[str, ByStrength]
    ood: Mapping[str, Sequence[float]]


class Finetuned(NamedTuple):
    """One finetuned copy of an encoder; accuracies in 0 to 1, one an epoch."""

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
        consistency: None, if no image activates it.
        images: places among the validation images.
    """

    dimension: int
    consistency: float | None
    images: Sequence[int]


class SalientDimension(NamedTuple):
    """The dimension with a class's largest weight; the class's accuracy in 0 to 1."""

    name: str
    accuracy: float
    shown: Dimension


class Consistent(NamedTuple):
    """Semantic consistency of one representation.

    Attributes:
        consistency: mean over the live dimensions.
        zeros: share of activations.
        right, wrong: mean over the images classified so of their largest dimension's consistency, by label seed.
        inputs: fingerprints of what it was measured on.
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
    random: Sequence[Dimension]
    best: SalientDimension
    worst: SalientDimension


class Autoencoder(NamedTuple):
    """A sparse autoencoder: variance explained on validation images, share of latents dead in training."""

    seed: int
    settings: Mapping[str, Any]
    explained: float
    dead: float


class Pretrained(NamedTuple):
    """An encoder; the accuracy of its online classifier in 0 to 1."""

    method: str
    seed: int
    settings: Mapping[str, Any]
    epochs: int
    probe_accuracy: float | None


class Gathered(NamedTuple):
    """All that there is."""

    probed: Sequence[Probed]
    finetuned: Sequence[Finetuned]
    consistent: Sequence[Consistent]
    autoencoders: Sequence[Autoencoder]
    pretrained: Sequence[Pretrained]

    def probes(self, representation: str, of: Callable[[Probed], Sequence[float]]) -> BySeed:
        """What ``of`` takes from each seed's classifiers, one value a classifier."""
        return {each.seed: of(each) for each in self.probed if each.representation == representation}

    def accuracy(self, representation: str, loss: str, rate: float) -> BySeed:
        """Of the classifiers trained with a loss and a share of wrong labels."""
        return self.probes(representation, lambda each: each.accuracy.get(loss, {}).get(rate, ()))

    def input_noise(self, representation: str, kind: str, scale: float) -> BySeed:
        """Of classifiers trained on clean labels, on validation images with noise."""
        return self.probes(representation, lambda each: each.input_noise.get(kind, {}).get(scale, ()))

    def ood(self, representation: str, images: str) -> BySeed:
        """Of the same, on images of another kind, by their name."""
        return self.probes(representation, lambda each: each.ood.get(images, ()))

    def rates(self, loss: str) -> list[float]:
        """All noise rates that a loss was used with."""
        return sorted({rate for each in self.probed for rate in each.accuracy.get(loss, ())})

    def losses(self) -> list[str]:
        """Those that classifiers were trained with, cross entropy first."""
        return sorted({loss for each in self.probed for loss in each.accuracy})

    def data(self) -> Mapping[str, Any] | None:
        """The settings of the images, where a record has them."""
        settings = [
            *(each.settings for each in self.probed),
            *(each.settings for each in self.pretrained),
            *(each.settings for each in self.consistent),
        ]
        return next((each["data"] for each in settings if isinstance(each.get("data"), dict)), None)


def gather(out: str | Path) -> Gathered:
    """Read the records of a folder of runs.

    Raises:
        InputError: if there are none at all, or one is damaged.
    """
    root = Path(out)
    found = Gathered(
        probed=[_read(path, _probed, *key) for path, *key in _named(root / "probe", "*.json", ORDER)],
        finetuned=[
            run for path, _, seed in _named(root / "finetune", "*.json", ("",)) for run in _read(path, _finetuned, seed)
        ],
        consistent=[_read(path, _consistent, *key) for path, *key in _named(root / "consistency", "*.json", ORDER)],
        autoencoders=[
            _read(path / "sae.json", _autoencoder, seed)
            for path, _, seed in _named(root, "sae-*", ("sae",))
            if (path / "sae.json").is_file()
        ],
        pretrained=[
            _read(path / "pretrain.json", _pretrained, *key)
            for path, *key in _named(root, "*", METHODS)
            if (path / "pretrain.json").is_file()
        ],
    )
    if not any(found):
        raise InputError(f"{root} has no results. Run the steps first: monolora vision all --out {root}.")
    return found


def _named(folder: Path, pattern: str, names: Sequence[str]) -> Iterator[tuple[Path, str, int]]:
    """Paths called ``NAME-SEED`` (``SEED`` for the name ""), by name in the order given, and seed."""
    found = []
    for path in folder.glob(pattern):
        parts = re.fullmatch(r"(?:([a-z]+)-)?(-?\d+)", path.name.removesuffix(".json"))
        if parts and (parts[1] or "") in names:
            found.append((names.index(parts[1] or ""), int(parts[2]), path))
    for place, seed, path in sorted(found):
        yield path, names[place], seed


def _read(path: Path, parse: Callable[..., _T], *key: Any) -> _T:
    mend = "Run its step again."
    record = read(path, mend)
    try:
        return parse(record, *key)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{error} is missing." if isinstance(error, KeyError) else in_one_line(error)
        raise InputError(f"{path} is damaged: {problem} Delete it. {mend}") from error


def _probed(record: dict[str, Any], representation: str, seed: int) -> Probed:
    results = record["results"]
    return Probed(
        representation, seed, record["settings"], results["classes"],
        accuracy={loss: _by_strength(rates) for loss, rates in results["accuracy"].items()},
        input_noise={kind: _by_strength(scales) for kind, scales in results["input_noise"].items()},
        ood=dict(results["ood"]),
    )  # fmt: skip


def _by_strength(found: Mapping[str, Sequence[float]]) -> ByStrength:
    return {float(key): list(values) for key, values in found.items()}


def _finetuned(record: dict[str, Any], seed: int) -> list[Finetuned]:
    return [
        Finetuned(
            seed, run["objective"], float(run["fraction"]), float(run["noise_rate"]), run["draw"],
            run["train_accuracy"], run["val_accuracy"],
        )
        for run in record["results"]["runs"]
    ]  # fmt: skip


def _consistent(record: dict[str, Any], representation: str, seed: int) -> Consistent:
    results = record["results"]
    return Consistent(
        representation, seed, record["settings"], record["inputs"],
        results["consistency"], results["live"], results["dimensions"], results["zeros"],
        # null, where none was classified so
        right=[each for each in results["right"] if each is not None],
        wrong=[each for each in results["wrong"] if each is not None],
        random=[_dimension(each) for each in results["random_dimensions"]],
        best=_salient(results["best_class"]), worst=_salient(results["worst_class"]),
    )  # fmt: skip


def _salient(found: Mapping[str, Any]) -> SalientDimension:
    return SalientDimension(found["class"], found["accuracy"], _dimension(found))


def _dimension(found: Mapping[str, Any]) -> Dimension:
    return Dimension(found["dimension"], found["consistency"], found["images"])


def _autoencoder(record: dict[str, Any], seed: int) -> Autoencoder:
    results = record["results"]
    return Autoencoder(seed, record["settings"], results["explained_variance"]["val"], results["dead"])


def _pretrained(record: dict[str, Any], method: str, seed: int) -> Pretrained:
    results = record["results"]
    return Pretrained(method, seed, record["settings"], results["epochs"], results["probe_accuracy"])
