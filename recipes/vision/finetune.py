"""Finetune copies of the pretrained SimCLR encoders, on few images and on wrong labels (section 3.2, appendix A.2).

    monolora vision finetune --config CONFIG [flags]
    monolora vision finetune --out runs/cifar100 --objectives ce,nce --fractions 0.1,1 --noise-rates 0.8

There is one run for each share of the images, with clean labels, and one for each share of wrong labels, on all images;
each with both objectives, and --draws times. CE and NCE of a draw see the same images, labels, orders, augmentations
and first weights. The record in OUT/finetune/SEED.json is written after every run: a program that was stopped resumes
where it was, and the runs of a later command are added to the record.
"""

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
from monolora.recipes.vision.finetuning import Classifier, Curves, Training, with_common_lengths
from monolora.recipes.vision.images import ImageData, load_images
from monolora.recipes.vision.settings import Finetune, Settings

_SIMCLR = "simclr"
_SELECTION = ("objectives", "fractions", "noise_rates", "draws")  # settings that select runs and change none of them


class Run(NamedTuple):
    """What identifies a run on one encoder; the fields are keys of the record."""

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
        InputError: if an encoder or the images are unavailable, or the settings select no run.
        RunError: if a loss is not finite, or the device has not enough memory.
        SaveError: if the disk does not take a record.
    """
    runs = runs_of(settings.finetune)
    device = device_of(settings.common.device)
    folders = [encoder_folder(settings.common.out, _SIMCLR, seed) for seed in settings.common.seeds]
    encoders = [load_encoder(folder, device) for folder in folders]  # all, before hours go into the first one
    data = load_images(settings.data, device)
    inputs = {"train": data.train.fingerprint, "val": data.val.fingerprint}
    for seed, folder, encoder in zip(settings.common.seeds, folders, encoders, strict=True):
        with locked(finetune_file(settings.common.out, seed)):
            _finetune_seed(settings, seed, encoder, data, runs, inputs | {"encoder": fingerprint_files(folder)})


def runs_of(finetune: Finetune) -> list[Run]:
    """The runs that the settings select, each once.

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


def _finetune_seed(
    settings: Settings, seed: int, encoder: Encoder, data: ImageData, runs: list[Run], inputs: dict[str, str]
) -> None:
    """Do those of ``runs`` that the record does not have; each is recorded as soon as it is done."""
    path = finetune_file(settings.common.out, seed)
    about = {name: value for name, value in asdict(settings.finetune).items() if name not in _SELECTION}
    about["precision"] = str(dtype_of(settings.common.precision, data.train.device))
    results = experiment_steps.results_if_same(path, about, inputs)
    entries: list[dict[str, Any]] = results["runs"] if results else []
    done = {Run(*(entry[name] for name in Run._fields)) for entry in entries}
    if skipped := len(done & set(runs)):
        print(f"{_SIMCLR}-{seed}, finetuning: {skipped} of {len(runs)} runs done before", flush=True)
    missing = [run for run in runs if run not in done]
    if missing:
        encoder = with_common_lengths(encoder, data.train)
    for run in missing:
        start = time.perf_counter()
        try:
            with out_of_memory("Lower finetune's --batch-size."):
                curves = _curves(settings, seed, run, encoder, data)
        except RunError as error:
            raise RunError(f"{_SIMCLR}-{seed}, {run}: {error}") from error
        seconds = time.perf_counter() - start
        entries.append(run._asdict() | curves._asdict() | {"seconds": seconds})
        experiment_steps.write(path, about, inputs, {"runs": entries})
        print(
            f"{_SIMCLR}-{seed}, {run}: training {100 * curves.train_accuracy[-1]:.1f} %, "
            f"validation {100 * curves.val_accuracy[-1]:.1f} % ({seconds:.0f} s)",
            flush=True,
        )


def _curves(settings: Settings, seed: int, run: Run, encoder: Encoder, data: ImageData) -> Curves:
    """Train one run. Random numbers depend on ``seed`` and the draw, never on the objective: CE and NCE are paired."""
    images, labels, weights, orders = ([seed, run.draw, purpose] for purpose in range(4))
    indices_n = stratified_sample(data.train.labels_N, run.fraction, images)
    classes = len(data.train.classes)
    labels_N = noisy_labels(data.train.labels_N, classes, run.noise_rate, labels)
    network = Classifier(encoder, classes, run.objective == "nce", generator_of(weights))
    dtype = dtype_of(settings.common.precision, data.train.device)
    training = Training(network, data, settings.finetune, dtype, generator_of(orders), settings.common.compile)
    return training.run(indices_n, labels_N)


def stratified_sample(labels_N: torch.Tensor, fraction: float, seed: int | Sequence[int]) -> torch.Tensor:
    """Draw a share of the training images class by class (section 3.2.2).

    With the same seed, the images of a smaller fraction are among those of a larger one.

    Args:
        labels_N: ``int64``, on the CPU.
        fraction: above 0, at most 1.
        seed: of the draw.

    Returns:
        Ascending indices of ``round(fraction * count)`` images of each class, at least one.
    """
    order_N = np.random.default_rng(seed).permutation(len(labels_N))  # of all images, whatever the fraction
    labels = labels_N.numpy()[order_N]
    samples = []
    for label in np.unique(labels):
        of_class = order_N[labels == label]
        samples.append(of_class[: max(1, round(fraction * len(of_class)))])
    return torch.from_numpy(np.sort(np.concatenate(samples)))


def main(argv: list[str]) -> int:
    """Run the program with the words of its command line."""
    run(parse(argv, "finetune", __doc__))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
