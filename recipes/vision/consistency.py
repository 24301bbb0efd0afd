"""Semantic consistency: how far a dimension is activated by images of one class only (section 4.1; Wang et al., 2024).

Shapes: B images of a part, N of a data set, D dimensions of a representation, C classes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional as F

from monolora.errors import InputError, exit_status, in_one_line
from monolora.locks import locked
from monolora.provenance import fingerprint_files
from monolora.recipes.experiment_steps import device_of, out_of_memory, read, results_if_same, write
from monolora.recipes.vision.command_line import parse
from monolora.recipes.vision.features import consistency_file, features_of, probe_file
from monolora.recipes.vision.images import ImageData, load_images
from monolora.recipes.vision.settings import REPRESENTATIONS, Consistency, Settings

_CHUNK = 4096  # images counted at a time


class Top(NamedTuple):
    """The images that activate a dimension most.

    Attributes:
        images: places in the data set, the most activated first.
        activations: theirs.
    """

    images: list[int]
    activations: list[float]


def semantic_consistency(z_ND: torch.Tensor, labels_N: torch.Tensor, classes: int, threshold: float) -> torch.Tensor:
    """Of the images that activate a dimension, the share of their most frequent class.

    Args:
        z_ND: representations.
        labels_N: ``int64``, on their device.
        classes: C.
        threshold: an image with ``|z|`` above it activates the dimension. Of dense features, as SimCLR's, nearly all
            images do: the share is then near that of the most frequent class among all.

    Returns:
        ``float32``, shape ``(D,)``; NaN for dimensions that no image activates.
    """
    counts_CD = torch.zeros(classes, z_ND.shape[1], dtype=torch.float64, device=z_ND.device)
    for z_BD, labels_B in zip(z_ND.split(_CHUNK), labels_N.split(_CHUNK), strict=True):
        active_BD = (z_BD.abs() > threshold).float()
        counts_CD += F.one_hot(labels_B, classes).float().T @ active_BD  # whole numbers: exact in any precision
    return (counts_CD.max(0).values / counts_CD.sum(0)).float()


def salient_dimensions(z_ND: torch.Tensor) -> torch.Tensor:
    """Each image's dimension with the largest activation, shape ``(N,)``."""
    return z_ND.argmax(1)


def salient_consistency(z_ND: torch.Tensor, consistency_D: torch.Tensor, threshold: float) -> torch.Tensor:
    """The consistency of each image's salient dimension (Figure 4c).

    Returns:
        Shape ``(N,)``; NaN for images that do not activate it: behind a ReLU, those that are zero everywhere.
    """
    salient_N = salient_dimensions(z_ND)
    active_N = z_ND.gather(1, salient_N[:, None])[:, 0].abs() > threshold
    return torch.where(active_N, consistency_D[salient_N], torch.nan)


def top_images(z_ND: torch.Tensor, dimension: int, count: int, threshold: float) -> Top:
    """The ``count`` images that activate a dimension most, fewer if fewer activate it; of equal ones the first."""
    z_N = z_ND[:, dimension]
    order_N = z_N.argsort(descending=True, stable=True)
    top = order_N[z_N[order_N].abs() > threshold][:count]
    return Top(top.tolist(), z_N[top].tolist())


_MEND = "Train the classifiers first: monolora vision probe."


class Classifiers(NamedTuple):
    """Those trained at one noise rate, one for each label seed: logits are ``z / scale @ weight.T + bias``.

    Attributes:
        weight_MCD, bias_MC: on the device.
        scale: of the representations.
        classes: names.
        accuracy_C: of the first classifier, on clean validation labels.
    """

    weight_MCD: torch.Tensor
    bias_MC: torch.Tensor
    scale: float
    classes: Sequence[str]
    accuracy_C: Sequence[float]

    def right(self, z_ND: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        """Which images each classifier gets right, shape ``(M, N)``."""
        logits_MNC = torch.einsum("nd,mcd->mnc", z_ND / self.scale, self.weight_MCD) + self.bias_MC[:, None]
        return logits_MNC.argmax(-1) == labels_N


def run(settings: Settings) -> None:
    """Measure each seed's representations.

    Raises:
        InputError: if there are no classifiers, none of the noise rate, or they are of other features.
        RunError: if the device's memory is too small; SaveError if the disk is full.
    """
    device = device_of(settings.common.device)
    data = load_images(settings.data, device)
    for seed in settings.common.seeds:
        names = [name for name in REPRESENTATIONS if probe_file(settings.common.out, name, seed).is_file()]
        if not names:
            raise InputError(f"{Path(settings.common.out) / 'probe'} has no classifiers of seed {seed}. {_MEND}")
        for name in names:
            with locked(consistency_file(settings.common.out, name, seed)):
                print(f"{name}-{seed}: {_measure(settings, name, seed, data, device)}", flush=True)


def _measure(settings: Settings, name: str, seed: int, data: ImageData, device: torch.device) -> str:
    """Write the record of a representation, unless it is there; returns what is to be printed."""
    probe = probe_file(settings.common.out, name, seed)
    features = features_of(settings.common, name, seed, data, device)
    file = consistency_file(settings.common.out, name, seed)
    own = asdict(settings.consistency)
    inputs = {
        "features": features.fingerprint,
        "probe": fingerprint_files(probe.parent, probe.with_suffix(".safetensors").name),
    }
    if results_if_same(file, own, inputs) is not None:
        return "done before"
    with out_of_memory("Use --device cpu."):
        classifiers = load_classifiers(probe, settings.consistency.noise_rate, features.fingerprint, device)
        z_ND, labels_N = features.val_ND.to(device), data.val.labels_N.to(device)
        results = measured(z_ND, labels_N, classifiers, settings.consistency, seed)
    write(file, own, inputs, results)
    return _in_words(results)


def load_classifiers(probe: Path, rate: float, features: str, device: torch.device) -> Classifiers:
    """The cross-entropy classifiers of a noise rate.

    Args:
        probe: the record of the probe step.
        rate: share of wrong labels they were trained on.
        features: the fingerprint of the features they are to work on.
        device: where they go.

    Raises:
        InputError: if there are none, they are of other features, or a file is damaged.
    """
    record = read(probe, _MEND)
    if record["inputs"].get("features") != features:
        raise InputError(f"The classifiers in {probe} are of another checkpoint or other images. {_MEND}")
    found = record["results"]
    rates = list(found["accuracy"].get("ce", ()))
    place = next((i for i, each in enumerate(rates) if float(each) == rate), None)
    if place is None:
        raise InputError(
            f"{probe} has no cross-entropy classifiers of --noise-rate {rate:g}; it has those of "
            f"{', '.join(rates) or 'no rate'}. Choose one of these, or add it to the probe's --noise-rates."
        )
    weights = probe.with_suffix(".safetensors")
    try:
        tensors = load_file(weights, device=str(device))
        weight_MCD, bias_MC = tensors["ce.weight"][place], tensors["ce.bias"][place]
    except (OSError, KeyError, IndexError, SafetensorError) as error:
        raise InputError(f"Cannot load {weights}: {in_one_line(error)} Delete {probe}. {_MEND}") from error
    return Classifiers(weight_MCD, bias_MC, found["scale"], found["classes"], found["per_class"]["ce"][rates[place]][0])


def measured(
    z_ND: torch.Tensor, labels_N: torch.Tensor, classifiers: Classifiers, settings: Consistency, seed: int
) -> dict[str, Any]:
    """The record's results.

    Args:
        z_ND: representations.
        labels_N: ``int64``, on their device.
        classifiers: there too.
        settings: of the step.
        seed: of the dimensions that are drawn.

    Raises:
        InputError: if no image activates any dimension.
    """
    consistency_D = semantic_consistency(z_ND, labels_N, len(classifiers.classes), settings.threshold)
    live = (~consistency_D.isnan()).nonzero()[:, 0]
    if not len(live):
        raise InputError("No image activates any dimension: the encoder has collapsed. Pretrain again.")
    salient_N = salient_consistency(z_ND, consistency_D, settings.threshold)
    right_MN = classifiers.right(z_ND, labels_N)

    def shown(dimension: int) -> dict[str, Any]:
        top = top_images(z_ND, dimension, settings.images, settings.threshold)
        return {"dimension": dimension, "consistency": float(consistency_D[dimension]), **top._asdict()}

    def of_class(place: int) -> dict[str, Any]:
        weight_D = classifiers.weight_MCD[0, place]
        dimension = int(live[weight_D[live].argmax()])  # a dead one has the weight it started with
        return {"class": classifiers.classes[place], "accuracy": classifiers.accuracy_C[place], **shown(dimension)}

    accuracy_C = torch.tensor(classifiers.accuracy_C)
    drawn = torch.randperm(len(live), generator=torch.Generator().manual_seed(seed))[: settings.dimensions]
    return {
        "consistency": float(consistency_D.nanmean()),
        "live": len(live),
        "dimensions": len(consistency_D),
        "zeros": float((z_ND.abs() <= settings.threshold).double().mean()),
        "per_dimension": consistency_D.tolist(),
        "right": [float(salient_N[right_N].nanmean()) for right_N in right_MN],
        "wrong": [float(salient_N[~right_N].nanmean()) for right_N in right_MN],
        "right_values": _without_nan(salient_N[right_MN[0]]),
        "wrong_values": _without_nan(salient_N[~right_MN[0]]),
        "random_dimensions": [shown(int(live[i])) for i in drawn],
        "best_class": of_class(int(accuracy_C.argmax())),
        "worst_class": of_class(int(accuracy_C.argmin())),
    }


def _without_nan(values: torch.Tensor) -> list[float]:
    found: list[float] = values[~values.isnan()].tolist()
    return found


def _in_words(results: dict[str, Any]) -> str:
    right, wrong = (float(torch.tensor(results[name]).nanmean()) for name in ("right", "wrong"))
    return (
        f"consistency {results['consistency']:.3f} of {results['live']} live of {results['dimensions']} dimensions, "
        f"{results['zeros']:.1%} zeros; of salient dimensions, images right {right:.3f}, wrong {wrong:.3f}"
    )


def main(argv: list[str]) -> int:
    """Measure; returns the exit status."""
    run(parse(argv, "consistency", __doc__))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
