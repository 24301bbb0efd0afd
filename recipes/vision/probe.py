"""Train linear classifiers on frozen representations with wrong labels, and try them on noisy and foreign images.

    monolora vision probe --config CONFIG [flags]
    monolora vision probe --out runs/cifar100 --noise-rates 0,0.9 --losses ce --ood sketch=data/imagenet-sketch

(Section 3.1.2, appendices A.1 and C.) All noise rates, label seeds and losses of a representation are trained at
once, on the same batches; a wrong label at one rate is the same wrong label at the higher ones. Those that are there
of simclr, ncl and sae are probed; records and weights go into OUT/probe/REPRESENTATION-SEED.{json,safetensors}.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from monolora.errors import InputError, RunError, SaveError, exit_status
from monolora.locks import locked
from monolora.recipes import experiment_steps
from monolora.recipes.experiment_steps import device_of, dtype_of, generator_of, noisy_labels, out_of_memory
from monolora.recipes.vision import autoencoder, encoder
from monolora.recipes.vision.augment import Augment
from monolora.recipes.vision.command_line import parse
from monolora.recipes.vision.features import (
    Features,
    Representation,
    encoder_folder,
    features_of,
    load_representation,
    probe_file,
)
from monolora.recipes.vision.images import ImageData, Images, load_images
from monolora.recipes.vision.input_noise import noise_accuracies, ood_accuracies, open_ood
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
from monolora.recipes.vision.settings import REPRESENTATIONS, Probe, Settings
from monolora.runs import write_aside

_CROP_MIN = 0.08  # of on-the-fly crops, as is usual for linear classifiers
_LABELS, _ORDER, _NOISE, _CROPS = range(4)  # what a seed is of: [pretraining seed, one of these, a number]


def run(settings: Settings) -> None:
    """Probe the representations of each seed.

    Raises:
        InputError: if there are none, or what is asked for cannot be.
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
        raise InputError("--noise-rates must have 0: classifiers of clean labels are tried on noisy images. Add it.")
    if "ce" not in probe.losses:
        raise InputError("--losses must have ce: its classifiers are tried on noisy images. Add it.")
    for name, given in (("--noise-rates", probe.noise_rates), ("--noise-scales", probe.noise_scales)):
        if len(set(given)) < len(given):
            raise InputError(f"{name} has a number twice: {', '.join(map(str, given))}. Give each once.")


def _weights_of(name: str) -> str:
    return autoencoder.WEIGHTS if name == "sae" else encoder.WEIGHTS


def _probe(
    settings: Settings, name: str, seed: int, data: ImageData, ood: Mapping[str, Images], device: torch.device
) -> Iterator[str]:
    """Write the record and the weights of a representation, unless they are there; gives what is to be printed."""
    probe, start = settings.probe, time.perf_counter()
    file = probe_file(settings.common.out, name, seed)
    dtype = dtype_of(settings.common.precision, device)
    images = {each: getattr(settings.data, each) for each in ("dataset", "classes", "per_class")}
    own = asdict(probe) | {"precision": str(dtype), "data": images}
    try:
        with out_of_memory("Lower the probe's --batch-size, or give fewer --noise-rates or --label-seeds."):
            features = features_of(settings.common, name, seed, data, device)
            inputs = {"features": features.fingerprint} | {f"ood {each}": ood[each].fingerprint for each in ood}
            if _weights_file(file).is_file() and experiment_steps.results_if_same(file, own, inputs) is not None:
                yield ": done before"
                return
            representation = load_representation(settings.common, name, seed, device)
            labels_MN = _labels(probe, seed, data.train)
            probes = _trained(probe, seed, representation, features, labels_MN, data, dtype)
            results = _results(probe, probes, features, labels_MN, data)
            clean = probes.chosen(_clean(probe, device))
            scales = [0.0, *(scale for scale in probe.noise_scales if scale)]
            results["input_noise"] = noise_accuracies(representation, clean, data.val, scales, [seed, _NOISE])
            results["ood"] = ood_accuracies(representation, clean, ood)
    except (InputError, RunError) as error:
        raise type(error)(f"{name}-{seed}: {error}") from error
    results["seconds"] = time.perf_counter() - start
    _save(probe, probes, _weights_file(file))
    experiment_steps.write(file, own, inputs, results)
    yield from _in_words(probe, results)


def _labels(probe: Probe, seed: int, images: Images) -> torch.Tensor:
    """Of each classifier, shape ``(M, N)``: by loss, then by noise rate, then by label seed."""
    of_rates = [
        noisy_labels(images.labels_N, len(images.classes), rate, [seed, _LABELS, draw])
        for rate in probe.noise_rates
        for draw in range(probe.label_seeds)
    ]
    return torch.stack(of_rates * len(probe.losses))


def _clean(probe: Probe, device: torch.device) -> torch.Tensor:
    """Places of the cross-entropy classifiers of clean labels."""
    shape = (len(probe.losses), len(probe.noise_rates), probe.label_seeds)
    places = torch.arange(torch.Size(shape).numel(), device=device).view(shape)
    return places[probe.losses.index("ce"), probe.noise_rates.index(0.0)]


def _trained(
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
    of_each = [losses[loss] for loss in probe.losses for _ in range(len(labels_MN) // len(probe.losses))]
    device = data.train.device
    if probe.augment:
        source = _augmented_source(representation, features.train_ND, data.train, orders, seed, dtype)
    else:
        source = cached_source(features.train_ND, orders, dtype, device)
    return train_probes(source, labels_MN, len(data.train.classes), of_each, probe, dtype, device)


def _augmented_source(
    representation: Representation,
    x_ND: torch.Tensor,
    images: Images,
    orders: Orders,
    seed: int,
    dtype: torch.dtype,
) -> FeatureSource:
    """Batches of features of random crops and flips, new in every epoch; scaled as the features ``x_ND`` without."""
    scale = feature_scale(x_ND)
    augment = Augment(size=representation.encoder.config.image_size, crop_min=_CROP_MIN)

    def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = generator_of([seed, _CROPS, epoch])
        for places_B, pixels_B3SS in images.batches(orders(epoch)):
            crops_B3SS = representation.encoder.standardised(augment(pixels_B3SS, generator))
            yield places_B, (representation.of_images(crops_B3SS) / scale).to(dtype)

    return FeatureSource(x_ND.shape[1], scale, batches)


def _results(
    probe: Probe, probes: Probes, features: Features, labels_MN: torch.Tensor, data: ImageData
) -> dict[str, Any]:
    """Of the record: accuracies on the validation images and on the training images with their wrong labels."""
    labels_N = data.val.labels_N
    right_MN = probes.rightly(features.val_ND, labels_N).double()
    per_class = [right_MN[:, labels_N == each].mean(1) for each in range(len(data.val.classes))]
    return {
        "classes": list(data.val.classes),
        "scale": probes.scale,
        "accuracy": _by_loss_and_rate(probe, right_MN.mean(1)),
        "train_accuracy": _by_loss_and_rate(probe, probes.rightly(features.train_ND, labels_MN).double().mean(1)),
        "per_class": _by_loss_and_rate(probe, torch.stack(per_class, 1)),
    }


def _by_loss_and_rate(probe: Probe, values_M: torch.Tensor) -> dict[str, dict[str, list[Any]]]:
    """Of each loss, of each noise rate, a list by label seed."""
    shape = (len(probe.losses), len(probe.noise_rates), probe.label_seeds)
    return {
        loss: dict(zip(map(str, probe.noise_rates), of_loss.tolist(), strict=True))
        for loss, of_loss in zip(probe.losses, values_M.unflatten(0, shape), strict=True)
    }


def _weights_file(file: Path) -> Path:
    return file.with_suffix(".safetensors")


def _save(probe: Probe, probes: Probes, file: Path) -> None:
    """Write the classifiers: ``LOSS.weight``, shape ``(rates, label_seeds, C, D)``, and ``LOSS.bias``."""
    shape = (len(probe.losses), len(probe.noise_rates), probe.label_seeds)
    tensors = {}
    for kind, values in (("weight", probes.weight_MCD), ("bias", probes.bias_MC)):
        for loss, of_loss in zip(probe.losses, values.cpu().unflatten(0, shape), strict=True):
            tensors[f"{loss}.{kind}"] = of_loss.contiguous()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".json").unlink(missing_ok=True)  # it is not of the weights that come now
        write_aside(file, lambda path: save_file(tensors, path))
    except (OSError, SafetensorError) as error:
        raise SaveError.of(file.parent, error, "Free space, then give the same command again.") from error


def _in_words(probe: Probe, results: Mapping[str, Any]) -> Iterator[str]:
    ends = sorted({min(probe.noise_rates), max(probe.noise_rates)})
    for loss, of_rates in results["accuracy"].items():
        means = {rate: sum(of_rates[str(rate)]) / probe.label_seeds for rate in ends}
        shown = ", ".join(
            f"{100 * mean:.1f} % right with {100 * rate:g} % wrong labels" for rate, mean in means.items()
        )
        yield f", {loss}: {shown} ({results['seconds']:.0f} s)"


def main(argv: list[str]) -> int:
    """Run the program with the words of its command line."""
    run(parse(argv, "probe", __doc__))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
