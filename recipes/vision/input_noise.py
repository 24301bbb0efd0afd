"""Classifiers trained on clean images, on others: validation images with noise, and images of another kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from monolora.errors import InputError
from monolora.recipes.experiment_steps import generator_of
from monolora.recipes.vision.features import Representation
from monolora.recipes.vision.images import Images, cached
from monolora.recipes.vision.linear_probe import Probes
from monolora.recipes.vision.settings import NOISES, Data
from monolora.recipes.vision.sources import open_class_folders

_BATCH = 512


def noise_of(kind: str, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """``U[0, 1)`` for ``uniform`` and ``N(0, 1)`` for ``gaussian``, of the generator's device."""
    draw = {"uniform": torch.rand, "gaussian": torch.randn}[kind]
    return draw(*shape, generator=generator)


def noise_accuracies(
    representation: Representation, probes: Probes, images: Images, scales: Sequence[float], seed: Sequence[int]
) -> dict[str, dict[str, list[float]]]:
    """Accuracies on normalised images with ``scale`` times noise, each classifier's, by kind and scale.

    All scales have the same draws. They are made on the CPU: the same on every device.

    Args:
        representation: what the classifiers were trained on.
        probes: the classifiers.
        images: with their right labels.
        scales: deviation of Gaussian noise, and upper end of uniform noise.
        seed: two numbers; of the noise.
    """
    found = {}
    for place, kind in enumerate(NOISES):
        generator = generator_of([*seed, place])
        right_SM = torch.zeros(len(scales), len(probes.bias_MC), dtype=torch.int64)
        for places_B, pixels_B3SS in images.batches(torch.arange(len(images.labels_N)).split(_BATCH)):
            clean_B3SS = representation.encoder.normalised(pixels_B3SS)
            noise_B3SS = noise_of(kind, clean_B3SS.shape, generator).to(clean_B3SS.device)
            for right_M, scale in zip(right_SM, scales, strict=True):
                with torch.inference_mode():
                    z_BD = representation.of_images(torch.add(clean_B3SS, noise_B3SS, alpha=scale))
                right_M += probes.rightly(z_BD, images.labels_N[places_B]).sum(1)
        shares = (right_SM.double() / len(images.labels_N)).tolist()
        found[kind] = {str(scale): share for scale, share in zip(scales, shares, strict=True)}
    return found


def open_ood(ood: Sequence[str], data: Data, classes: Sequence[str], device: torch.device) -> dict[str, Images]:
    """The images that ``--ood NAME=FOLDER`` names, by their names.

    Raises:
        InputError: for words of another form, a name given twice, and folders that have none of the classes.
    """
    found: dict[str, Images] = {}
    for word in ood:
        name, equals, folder = word.partition("=")
        if not (name and equals and folder):
            raise InputError(f"--ood takes NAME=FOLDER, such as sketch=data/imagenet-sketch; got {word!r}.")
        if name in found:
            raise InputError(f"--ood has the name {name!r} twice. Give each folder a name of its own.")
        found[name] = cached(open_class_folders(Path(folder), classes), data, device)
    return found


def ood_accuracies(representation: Representation, probes: Probes, ood: Mapping[str, Images]) -> dict[str, list[float]]:
    """Accuracies on images of other kinds, each classifier's, by their names."""
    return {
        name: probes.rightly(representation.of_all(images), images.labels_N).double().mean(1).tolist()
        for name, images in ood.items()
    }
