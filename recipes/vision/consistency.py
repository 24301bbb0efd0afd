"""Measure how sparse and how monosemantic each representation is, and which dimensions a noisy classifier trusts.

    monolora vision consistency --config CONFIG [flags]
    monolora vision consistency --out runs/cifar100 --noise-rate 0.9

(Section 4.1.) Every representation that has classifiers in OUT/probe is measured, on validation images: the semantic
consistency of each dimension (Wang et al., 2024); that of the images' salient dimensions, for images that a classifier
of wrong labels gets right and for those that it gets wrong (Figure 4c); and the images that most activate some
dimensions (Figures 1a, 4a and 4b). Records go into OUT/consistency.
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
from monolora.recipes.experiment_steps import device_of, out_of_memory, read, results_if_same, write
from monolora.recipes.vision.features import consistency_file, features_of, probe_file
from monolora.recipes.vision.images import ImageData, load_images
from monolora.recipes.vision.settings import REPRESENTATIONS, Consistency, Settings, parse
from monolora.run_record import fingerprint_files

_CHUNK = 4096  # images counted at a time
_NO_PROBES = "Train the classifiers first: monolora vision probe."


# The measure.


class Top(NamedTuple):
    """The images that activate a dimension most.

    Attributes:
        images: indices in the data set, the strongest activation first.
        activations: one for each image.
    """

    images: list[int]
    activations: list[float]


def semantic_consistency(z_ND: torch.Tensor, labels_N: torch.Tensor, classes: int, threshold: float) -> torch.Tensor:
    """The share of the most frequent class among the images that activate a dimension.

    Args:
        z_ND: representations.
        labels_N: ``int64``, on the same device.
        classes: C.
        threshold: an image with ``|z|`` above it activates the dimension. Nearly all images activate a dimension of
            dense features such as SimCLR's: the share is then near that of the most frequent class of all.

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


# The program.


class Classifiers(NamedTuple):
    """The classifiers of one noise rate, one for each label seed: logits are ``z / scale @ weight.T + bias``.

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

    def correct(self, z_ND: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        """Which images each classifier gets right, shape ``(M, N)``."""
        logits_MNC = torch.einsum("nd,mcd->mnc", z_ND / self.scale, self.weight_MCD) + self.bias_MC[:, None]
        return logits_MNC.argmax(-1) == labels_N


def run(settings: Settings) -> None:
    """Measure the representations of each seed.

    Raises:
        InputError: if there are no classifiers, none of the noise rate, or they are of other features.
        RunError: if the device's memory is too small; SaveError if the disk is full.
    """
    device = device_of(settings.common.device)
    data = load_images(settings.data, device)
    for seed in settings.common.seeds:
        names = [name for name in REPRESENTATIONS if probe_file(settings.common.out, name, seed).is_file()]
        if not names:
            raise InputError(f"{Path(settings.common.out) / 'probe'} has no classifiers of seed {seed}. {_NO_PROBES}")
        for name in names:
            with locked(consistency_file(settings.common.out, name, seed)):
                print(f"{name}-{seed}: {_measure(settings, name, seed, data, device)}", flush=True)


def _measure(settings: Settings, name: str, seed: int, data: ImageData, device: torch.device) -> str:
    """Write the record of a representation, unless it exists; returns its summary."""
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
        results = measure(z_ND, labels_N, classifiers, settings.consistency, seed)
    write(file, own, inputs, results)
    return _summary(results)


def load_classifiers(probe: Path, rate: float, features: str, device: torch.device) -> Classifiers:
    """The cross-entropy classifiers of a noise rate.

    Args:
        probe: the record of the probe step.
        rate: share of wrong labels they were trained on.
        features: the fingerprint of the features that they must be of.
        device: that they are loaded to.

    Raises:
        InputError: if there are none, they are of other features, or a file is damaged.
    """
    record = read(probe, _NO_PROBES)
    if record["inputs"].get("features") != features:
        raise InputError(f"The classifiers in {probe} are of another checkpoint or other images. {_NO_PROBES}")
    results = record["results"]
    rates = list(results["accuracy"].get("ce", ()))
    index = next((index for index, own in enumerate(rates) if float(own) == rate), None)
    if index is None:
        raise InputError(
            f"{probe} has no cross-entropy classifiers of --noise-rate {rate:g}; it has those of "
            f"{', '.join(rates) or 'no rate'}. Choose one of these, or add it to the probe's --noise-rates."
        )
    weights = probe.with_suffix(".safetensors")
    try:
        tensors = load_file(weights, device=str(device))
        weight_MCD, bias_MC = tensors["ce.weight"][index], tensors["ce.bias"][index]
    except (OSError, KeyError, IndexError, SafetensorError) as error:
        raise InputError(f"Cannot load {weights}: {in_one_line(error)} Delete {probe}. {_NO_PROBES}") from error
    accuracy_C = results["per_class"]["ce"][rates[index]][0]
    return Classifiers(weight_MCD, bias_MC, results["scale"], results["classes"], accuracy_C)


def measure(
    z_ND: torch.Tensor, labels_N: torch.Tensor, classifiers: Classifiers, settings: Consistency, seed: int
) -> dict[str, Any]:
    """Compute the record's results.

    Args:
        z_ND: representations.
        labels_N: ``int64``, on the same device.
        classifiers: on the same device.
        settings: of the step.
        seed: of the random dimensions.

    Raises:
        InputError: if no image activates any dimension.
    """
    consistency_D = semantic_consistency(z_ND, labels_N, len(classifiers.classes), settings.threshold)
    live = (~consistency_D.isnan()).nonzero()[:, 0]
    if not len(live):
        raise InputError("No image activates any dimension: the encoder has collapsed. Pretrain again.")
    salient_N = salient_consistency(z_ND, consistency_D, settings.threshold)
    correct_MN = classifiers.correct(z_ND, labels_N)

    def top_of(dimension: int) -> dict[str, Any]:
        top = top_images(z_ND, dimension, settings.images, settings.threshold)
        return {"dimension": dimension, "consistency": float(consistency_D[dimension]), **top._asdict()}

    def of_class(label: int) -> dict[str, Any]:
        weight_D = classifiers.weight_MCD[0, label]
        dimension = int(live[weight_D[live].argmax()])  # of the live ones: a dead one's weight was never trained
        return {"class": classifiers.classes[label], "accuracy": classifiers.accuracy_C[label], **top_of(dimension)}

    accuracy_C = torch.tensor(classifiers.accuracy_C)
    random = torch.randperm(len(live), generator=torch.Generator().manual_seed(seed))[: settings.dimensions]
    return {
        "consistency": float(consistency_D.nanmean()),
        "live": len(live),
        "dimensions": len(consistency_D),
        "zeros": float((z_ND.abs() <= settings.threshold).double().mean()),
        "per_dimension": consistency_D.tolist(),
        "right": [float(salient_N[correct_N].nanmean()) for correct_N in correct_MN],
        "wrong": [float(salient_N[~correct_N].nanmean()) for correct_N in correct_MN],
        "right_values": _without_nan(salient_N[correct_MN[0]]),
        "wrong_values": _without_nan(salient_N[~correct_MN[0]]),
        "random_dimensions": [top_of(int(live[i])) for i in random],
        "best_class": of_class(int(accuracy_C.argmax())),
        "worst_class": of_class(int(accuracy_C.argmin())),
    }


def _without_nan(values: torch.Tensor) -> list[float]:
    finite: list[float] = values[~values.isnan()].tolist()
    return finite


def _summary(results: dict[str, Any]) -> str:
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
