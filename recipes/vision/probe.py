"""Train linear classifiers on frozen representations with wrong labels; test them on noisy and other kinds of images.

    monolora vision probe --config CONFIG [flags]
    monolora vision probe --out runs/cifar100 --noise-rates 0,0.9 --losses ce --ood sketch=data/imagenet-sketch

(Section 3.1.2, appendices A.1 and C.) All noise rates, label seeds and losses of a representation are trained together,
on the same batches; a label wrong at one rate is the same wrong label at the higher ones. Of simclr, ncl and sae, those
that OUT has are probed; records and weights go into OUT/probe/REPRESENTATION-SEED.{json,safetensors}.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from monolora.errors import InputError, RunError, exit_status
from monolora.files import saving, write_tensors
from monolora.locks import locked
from monolora.recipes import experiment_steps
from monolora.recipes.experiment_steps import device_of, dtype_of, generator_of, noisy_labels, out_of_memory
from monolora.recipes.vision import autoencoder, features
from monolora.recipes.vision.augment import Augment
from monolora.recipes.vision.features import (
    Features,
    Representation,
    encoder_folder,
    features_of,
    load_representation,
    probe_file,
)
from monolora.recipes.vision.images import ImageData, Images, cached, load_images
from monolora.recipes.vision.linear_probe import (
    CROSS_ENTROPY,
    FeatureSource,
    Loss,
    Orders,
    Probes,
    cached_source,
    feature_scale,
    shuffled,
    train_probes,
)
from monolora.recipes.vision.settings import NOISES, REPRESENTATIONS, Data, Probe, Settings, parse
from monolora.recipes.vision.sources import open_class_folders

_NOISE_BATCH = 512  # images at a time, without gradients
_CROP_MIN = 0.08  # smallest share of the area that --augment's crops take, as is usual for linear classifiers
_LABELS, _ORDER, _NOISE, _CROPS = range(4)  # purposes of a generator: its seed is [pretraining seed, purpose, number]


def run(settings: Settings) -> None:
    """Probe the representations of each seed.

    Raises:
        InputError: if there are none, or the settings do not go together.
        RunError: if the classifiers diverge, or the device's memory is too small; SaveError if the disk is full.
    """
    _check(settings.probe)
    device = device_of(settings.common.device)
    present = [
        (name, seed)
        for seed in settings.common.seeds
        for name in REPRESENTATIONS
        if (encoder_folder(settings.common.out, name, seed) / _weights_of(name)).is_file()
    ]
    if not present:
        raise InputError(
            f"{settings.common.out} has no encoder of --seeds {','.join(map(str, settings.common.seeds))}. Pretrain "
            "first: monolora vision pretrain."
        )
    data = load_images(settings.data, device)
    ood = open_ood(settings.probe.ood, settings.data, data.train.classes, device)
    for name, seed in present:
        with locked(probe_file(settings.common.out, name, seed)):
            for line in _probe(settings, name, seed, data, ood, device):
                print(f"{name}-{seed}{line}", flush=True)


def _check(probe: Probe) -> None:
    if 0.0 not in probe.noise_rates:
        raise InputError("--noise-rates must have 0: classifiers of clean labels are tested on noisy images. Add it.")
    if "ce" not in probe.losses:
        raise InputError("--losses must have ce: its classifiers are tested on noisy images. Add it.")
    for flag, values in (("--noise-rates", probe.noise_rates), ("--noise-scales", probe.noise_scales)):
        if len(set(values)) < len(values):
            raise InputError(f"{flag} has a number twice: {', '.join(map(str, values))}. Give each once.")


def _weights_of(name: str) -> str:
    return autoencoder.WEIGHTS if name == "sae" else features.WEIGHTS


def _probe(
    settings: Settings, name: str, seed: int, data: ImageData, ood: Mapping[str, Images], device: torch.device
) -> Iterator[str]:
    """Write the record and the weights of a representation, unless they exist; yields lines to print."""
    probe, start = settings.probe, time.perf_counter()
    file = probe_file(settings.common.out, name, seed)
    dtype = dtype_of(settings.common.precision, device)
    images = {name: getattr(settings.data, name) for name in ("dataset", "classes", "per_class")}
    own = asdict(probe) | {"precision": str(dtype), "data": images}
    try:
        with out_of_memory("Lower the probe's --batch-size, or give fewer --noise-rates or --label-seeds."):
            features = features_of(settings.common, name, seed, data, device)
            inputs = {"features": features.fingerprint} | {
                f"ood {kind}": images.fingerprint for kind, images in ood.items()
            }
            if _weights_file(file).is_file() and experiment_steps.results_if_same(file, own, inputs) is not None:
                yield ": done before"
                return
            representation = load_representation(settings.common, name, seed, device)
            labels_MN = _labels(probe, seed, data.train)
            probes = _train(probe, seed, representation, features, labels_MN, data, dtype)
            results = _results(probe, probes, features, labels_MN, data)
            clean = probes.select(_clean_indices(probe, device))
            scales = [0.0, *(scale for scale in probe.noise_scales if scale)]
            results["input_noise"] = noise_accuracies(representation, clean, data.val, scales, [seed, _NOISE])
            results["ood"] = ood_accuracies(representation, clean, ood)
    except (InputError, RunError) as error:
        raise type(error)(f"{name}-{seed}: {error}") from error
    results["seconds"] = time.perf_counter() - start
    _save(probe, probes, _weights_file(file))
    experiment_steps.write(file, own, inputs, results)
    yield from _summary(probe, results)


def _labels(probe: Probe, seed: int, images: Images) -> torch.Tensor:
    """The labels of each classifier, shape ``(M, N)``: by loss, then by noise rate, then by label seed."""
    of_one_loss = [
        noisy_labels(images.labels_N, len(images.classes), rate, [seed, _LABELS, draw])
        for rate in probe.noise_rates
        for draw in range(probe.label_seeds)
    ]
    return torch.stack(of_one_loss * len(probe.losses))


def _clean_indices(probe: Probe, device: torch.device) -> torch.Tensor:
    """The indices of the cross-entropy classifiers of clean labels."""
    shape = (len(probe.losses), len(probe.noise_rates), probe.label_seeds)
    indices = torch.arange(torch.Size(shape).numel(), device=device).view(shape)
    return indices[probe.losses.index("ce"), probe.noise_rates.index(0.0)]


def _train(
    probe: Probe,
    seed: int,
    representation: Representation,
    features: Features,
    labels_MN: torch.Tensor,
    data: ImageData,
    dtype: torch.dtype,
) -> Probes:
    def orders(epoch: int) -> Sequence[torch.Tensor]:
        return shuffled(len(features.train_ND), probe.batch_size, [seed, _ORDER, epoch])

    losses = {"ce": CROSS_ENTROPY, "sce": Loss(probe.sce_alpha, probe.sce_beta)}
    losses_M = [losses[loss] for loss in probe.losses for _ in range(len(labels_MN) // len(probe.losses))]
    device = data.train.device
    if probe.augment:
        source = _augmented_source(representation, features.train_ND, data.train, orders, seed, dtype)
    else:
        source = cached_source(features.train_ND, orders, dtype, device)
    return train_probes(source, labels_MN, len(data.train.classes), losses_M, probe, dtype, device)


def _augmented_source(
    representation: Representation,
    x_ND: torch.Tensor,
    images: Images,
    orders: Orders,
    seed: int,
    dtype: torch.dtype,
) -> FeatureSource:
    """Features of random crops and flips, new in every epoch; scaled like the features ``x_ND`` of whole images."""
    scale = feature_scale(x_ND)
    augment = Augment(size=representation.encoder.config.image_size, crop_min=_CROP_MIN)

    def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = generator_of([seed, _CROPS, epoch])
        for indices_B, pixels_B3SS in images.batches(orders(epoch)):
            crops_B3SS = representation.encoder.standardised(augment(pixels_B3SS, generator))
            yield indices_B, (representation.of_images(crops_B3SS) / scale).to(dtype)

    return FeatureSource(x_ND.shape[1], scale, batches)


def _results(
    probe: Probe, probes: Probes, features: Features, labels_MN: torch.Tensor, data: ImageData
) -> dict[str, Any]:
    """The record's accuracies: on the validation images, and on the training images with their wrong labels."""
    labels_N = data.val.labels_N
    correct_MN = probes.correct(features.val_ND, labels_N).double()
    train_correct_MN = probes.correct(features.train_ND, labels_MN).double()
    per_class = [correct_MN[:, labels_N == label].mean(1) for label in range(len(data.val.classes))]
    return {
        "classes": list(data.val.classes),
        "scale": probes.scale,
        "accuracy": _by_loss_and_rate(probe, correct_MN.mean(1)),
        "train_accuracy": _by_loss_and_rate(probe, train_correct_MN.mean(1)),
        "per_class": _by_loss_and_rate(probe, torch.stack(per_class, 1)),
    }


def _by_loss_and_rate(probe: Probe, values_M: torch.Tensor) -> dict[str, dict[str, list[Any]]]:
    """By loss and noise rate, a list by label seed."""
    shape = (len(probe.losses), len(probe.noise_rates), probe.label_seeds)
    return {
        loss: dict(zip(map(str, probe.noise_rates), of_loss.tolist(), strict=True))
        for loss, of_loss in zip(probe.losses, values_M.unflatten(0, shape), strict=True)
    }


# Other images than those of training.


def noise_of(kind: str, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """``U[0, 1)`` for ``uniform`` and ``N(0, 1)`` for ``gaussian``, on the generator's device."""
    draw = {"uniform": torch.rand, "gaussian": torch.randn}[kind]
    return draw(*shape, generator=generator)


def noise_accuracies(
    representation: Representation, probes: Probes, images: Images, scales: Sequence[float], seed: Sequence[int]
) -> dict[str, dict[str, list[float]]]:
    """Accuracy of each classifier on normalised images plus ``scale`` times noise, by kind and scale.

    All scales share their random numbers, which are drawn on the CPU: the same on every device.

    Args:
        representation: what the classifiers were trained on.
        probes: the classifiers.
        images: with their true labels.
        scales: standard deviation of Gaussian noise, upper end of uniform noise.
        seed: of the noise; the kind is appended.
    """
    accuracies = {}
    for kind_index, kind in enumerate(NOISES):
        generator = generator_of([*seed, kind_index])
        correct_SM = torch.zeros(len(scales), len(probes.bias_MC), dtype=torch.int64)
        for indices_B, pixels_B3SS in images.batches(torch.arange(len(images.labels_N)).split(_NOISE_BATCH)):
            clean_B3SS = representation.encoder.normalised(pixels_B3SS)
            noise_B3SS = noise_of(kind, clean_B3SS.shape, generator).to(clean_B3SS.device)
            for correct_M, scale in zip(correct_SM, scales, strict=True):
                with torch.inference_mode():
                    z_BD = representation.of_images(torch.add(clean_B3SS, noise_B3SS, alpha=scale))
                correct_M += probes.correct(z_BD, images.labels_N[indices_B]).sum(1)
        shares = (correct_SM.double() / len(images.labels_N)).tolist()
        accuracies[kind] = {str(scale): share for scale, share in zip(scales, shares, strict=True)}
    return accuracies


def open_ood(ood: Sequence[str], data: Data, classes: Sequence[str], device: torch.device) -> dict[str, Images]:
    """The images that ``--ood NAME=FOLDER`` names, by their names.

    Raises:
        InputError: for a value of another form, a name given twice, and a folder that has none of the classes.
    """
    sets: dict[str, Images] = {}
    for word in ood:
        name, equals, folder = word.partition("=")
        if not (name and equals and folder):
            raise InputError(f"--ood takes NAME=FOLDER, such as sketch=data/imagenet-sketch; got {word!r}.")
        if name in sets:
            raise InputError(f"--ood has the name {name!r} twice. Give each folder a name of its own.")
        sets[name] = cached(open_class_folders(Path(folder), classes), data, device)
    return sets


def ood_accuracies(representation: Representation, probes: Probes, ood: Mapping[str, Images]) -> dict[str, list[float]]:
    """Accuracy of each classifier on images of other kinds, by their names."""
    return {
        name: probes.correct(representation.of_all(images), images.labels_N).double().mean(1).tolist()
        for name, images in ood.items()
    }


# Records.


def _weights_file(file: Path) -> Path:
    return file.with_suffix(".safetensors")


def _save(probe: Probe, probes: Probes, file: Path) -> None:
    """Write the classifiers: ``LOSS.weight``, shape ``(rates, label_seeds, C, D)``, and ``LOSS.bias``."""
    shape = (len(probe.losses), len(probe.noise_rates), probe.label_seeds)
    tensors = {}
    for kind, values in (("weight", probes.weight_MCD), ("bias", probes.bias_MC)):
        for loss, of_loss in zip(probe.losses, values.cpu().unflatten(0, shape), strict=True):
            tensors[f"{loss}.{kind}"] = of_loss
    with saving(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".json").unlink(missing_ok=True)  # it would not be of the weights that come now
        write_tensors(file, tensors)


def _summary(probe: Probe, results: Mapping[str, Any]) -> Iterator[str]:
    ends = sorted({min(probe.noise_rates), max(probe.noise_rates)})
    for loss, of_rates in results["accuracy"].items():
        means = {rate: sum(of_rates[str(rate)]) / probe.label_seeds for rate in ends}
        accuracies = ", ".join(
            f"{100 * mean:.1f} % right with {100 * rate:g} % wrong labels" for rate, mean in means.items()
        )
        yield f", {loss}: {accuracies} ({results['seconds']:.0f} s)"


def main(argv: list[str]) -> int:
    """Run the program with the words of its command line."""
    run(parse(argv, "probe", __doc__))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
