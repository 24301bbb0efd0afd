"""A share of the training images, drawn class by class (paper, section 3.2.2)."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch

from monolora.errors import InputError, RunError, exit_status
from monolora.locks import locked
from monolora.provenance import fingerprint_files
from monolora.recipes import experiment_steps
from monolora.recipes.experiment_steps import device_of, dtype_of, generator_of, noisy_labels, out_of_memory
from monolora.recipes.vision.command_line import parse
from monolora.recipes.vision.encoder import Encoder, load_encoder
from monolora.recipes.vision.features import encoder_folder, finetune_file
from monolora.recipes.vision.finetune_training import Classifier, Curves, Training, at_common_lengths
from monolora.recipes.vision.images import ImageData, load_images
from monolora.recipes.vision.settings import Finetune, Settings


def stratified(labels_N: torch.Tensor, fraction: float, seed: int | Sequence[int]) -> torch.Tensor:
    """Places of ``round(fraction * count)`` images of each class, at least one of each, in ascending order.

    For one seed a smaller fraction's images are among a larger one's.

    Args:
        labels_N: ``int64``, on the CPU.
        fraction: above 0, at most 1.
        seed: of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(labels_N))  # of all images, whatever the fraction
    labels = labels_N.numpy()[order]
    chosen = []
    for each in np.unique(labels):
        of_class = order[labels == each]
        chosen.append(of_class[: max(1, round(fraction * len(of_class)))])
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


_SIMCLR = "simclr"
_CHOICES = ("objectives", "fractions", "noise_rates", "draws")  # of runs; what one run gives does not depend on them


class Run(NamedTuple):
    """What tells the runs on one encoder apart; as they are named in a record."""

    objective: str
    fraction: float
    noise_rate: float
    draw: int

    def __str__(self) -> str:
        images = f"{100 * self.fraction:g} % of the images" if self.fraction < 1 else "all images"
        labels = f", {100 * self.noise_rate:g} % wrong labels" if self.noise_rate else ""
        return f"{self.objective}, {images}{labels}" + (f", draw {self.draw}" if self.draw else "")


def run(settings: Settings) -> None:
    """Finetune the encoder of each seed.

    Raises:
        InputError: if an encoder or the images cannot be had, or no run is asked for.
        RunError: if a loss is not finite, or the device has not enough memory.
        SaveError: if the disk does not take a record.
    """
    runs = runs_of(settings.finetune)
    device = device_of(settings.common.device)
    folders = [encoder_folder(settings.common.out, _SIMCLR, seed) for seed in settings.common.seeds]
    encoders = [load_encoder(folder, device) for folder in folders]  # all, before hours go into the first
    data = load_images(settings.data, device)
    inputs = {"train": data.train.fingerprint, "val": data.val.fingerprint}
    for seed, folder, encoder in zip(settings.common.seeds, folders, encoders, strict=True):
        with locked(finetune_file(settings.common.out, seed)):
            _of_seed(settings, seed, encoder, data, runs, inputs | {"encoder": fingerprint_files(folder)})


def runs_of(finetune: Finetune) -> list[Run]:
    """Every run that is asked for, once.

    Raises:
        InputError: if there is none.
    """
    kinds = [(fraction, 0.0) for fraction in finetune.fractions] + [(1.0, rate) for rate in finetune.noise_rates]
    runs = [
        Run(objective, fraction, rate, draw)
        for draw in range(finetune.draws)
        for fraction, rate in kinds
        for objective in finetune.objectives
    ]
    if not runs:
        raise InputError("--fractions and --noise-rates are both empty: there is nothing to finetune on. Give one.")
    return list(dict.fromkeys(runs))


def _of_seed(
    settings: Settings, seed: int, encoder: Encoder, data: ImageData, runs: list[Run], inputs: dict[str, str]
) -> None:
    """Those of ``runs`` that the record does not have; each is in it as soon as it is done."""
    path = finetune_file(settings.common.out, seed)
    about = {name: value for name, value in asdict(settings.finetune).items() if name not in _CHOICES}
    about["precision"] = str(dtype_of(settings.common.precision, data.train.device))
    kept = experiment_steps.results_if_same(path, about, inputs)
    done: list[dict[str, Any]] = kept["runs"] if kept else []
    there = {Run(*(each[name] for name in Run._fields)) for each in done}
    if skipped := len(there & set(runs)):
        print(f"{_SIMCLR}-{seed}, finetuning: {skipped} of {len(runs)} runs done before", flush=True)
    missing = [each for each in runs if each not in there]
    if missing:
        encoder = at_common_lengths(encoder, data.train)
    for each in missing:
        start = time.perf_counter()
        try:
            with out_of_memory("Lower finetune's --batch-size."):
                curves = _one(settings, seed, each, encoder, data)
        except RunError as error:
            raise RunError(f"{_SIMCLR}-{seed}, {each}: {error}") from error
        seconds = time.perf_counter() - start
        done.append(each._asdict() | curves._asdict() | {"seconds": seconds})
        experiment_steps.write(path, about, inputs, {"runs": done})
        print(
            f"{_SIMCLR}-{seed}, {each}: training {100 * curves.train_accuracy[-1]:.1f} %, "
            f"validation {100 * curves.val_accuracy[-1]:.1f} % ({seconds:.0f} s)",
            flush=True,
        )


def _one(settings: Settings, seed: int, each: Run, encoder: Encoder, data: ImageData) -> Curves:
    """A run's curves. What is drawn depends on ``seed`` and the run's draw, never on its objective."""
    images, labels, weights, orders = ([seed, each.draw, purpose] for purpose in range(4))
    places_n = stratified(data.train.labels_N, each.fraction, images)
    classes = len(data.train.classes)
    labels_N = noisy_labels(data.train.labels_N, classes, each.noise_rate, labels)
    network = Classifier(encoder, classes, each.objective == "nce", generator_of(weights))
    dtype = dtype_of(settings.common.precision, data.train.device)
    training = Training(network, data, settings.finetune, dtype, generator_of(orders), settings.common.compile)
    return training.run(places_n, labels_N)


def main(argv: list[str]) -> int:
    """Run the program with the words of its command line."""
    run(parse(argv, "finetune", __doc__))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
