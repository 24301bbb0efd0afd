"""Finetune copies of the pretrained SimCLR encoders, on few images and on wrong labels (section 3.2, appendix A.2).

    monolora vision finetune --config CONFIG [flags]
    monolora vision finetune --out runs/cifar100 --objectives ce,nce --fractions 0.1,1 --noise-rates 0.8

There is one run for each share of the images, with clean labels, and one for each share of wrong labels, on all images;
each with both objectives, and --draws times. CE and NCE of a draw see the same images, labels, orders, augmentations
and first weights. The record in OUT/finetune/SEED.json is written after every run: a program that was stopped resumes
where it was, and the runs of a later command are added to the record.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from monolora.errors import InputError, RunError, exit_status
from monolora.locks import locked
from monolora.recipes import experiment_steps
from monolora.recipes.experiment_steps import autocast, device_of, dtype_of, generator_of, noisy_labels, out_of_memory
from monolora.recipes.vision.augment import Augment
from monolora.recipes.vision.features import Encoder, encoder_folder, finetune_file, load_encoder
from monolora.recipes.vision.images import ImageData, Images, load_images
from monolora.recipes.vision.settings import Finetune, Settings, parse
from monolora.run_record import fingerprint_files

# One finetuning run: all weights of a pretrained encoder and a new classifier, with CE or NCE (section 3.2.1).
#
# CE is the cross entropy of `Linear(f(x))`, NCE that of `Linear(relu(f(x)))`: the same code, one ReLU apart. f(x) is
# the projector's output. The backbone's own output would not do: its last operations are a ReLU and a mean, so it is
# non-negative already, and NCE's ReLU would change nothing.


# Smallest share of an image's area that a crop takes. Supervised training of large networks on ImageNet takes 0.08;
# few images of 32 pixels need larger crops: one of 8 % is 9 pixels a side, too small to recognize a class.
CROP_MIN = 0.2
# Mean squared length of the projector's hidden and last outputs at the start. At 1, a learning rate that suits the
# backbone is too small for the classifier; at thousands, where the paper's 16384 and 2048 units can be, CE destroys at
# once what was pretrained.
SQUARED_LENGTH = 100.0
_MOMENTUM = 0.9
_BATCH = 512  # images at a time, without gradients
_LENGTH_IMAGES = 1024  # training images, spread over all, that lengths are measured on


class Curves(NamedTuple):
    """The measurements of a run, epoch by epoch.

    Attributes:
        train_accuracy: over the epoch's batches, in the course of training, on the labels trained on.
        val_accuracy: after the epoch, on the validation images and their own labels.
        train_loss: mean over the epoch's images.
    """

    train_accuracy: list[float]
    val_accuracy: list[float]
    train_loss: list[float]


class Classifier(nn.Module):
    """Normalised images to logits.

    Args:
        encoder: it is copied, and the copy is trained.
        classes: C.
        non_negative: NCE's ReLU.
        generator: of the linear layer's first weights, on the CPU.
    """

    def __init__(self, encoder: Encoder, classes: int, non_negative: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(True)
        self.non_negative = non_negative
        dim = encoder.config.projector_out
        self.linear = nn.utils.skip_init(nn.Linear, dim, classes, device=encoder.mean.device)
        with torch.no_grad():  # nn.Linear's own initialization, but from the generator
            for parameter in self.linear.parameters():
                uniform = torch.rand(parameter.shape, generator=generator)
                parameter.copy_((2 * uniform - 1) / dim**0.5)

    def forward(self, images_B3SS: torch.Tensor) -> torch.Tensor:
        """Logits, shape ``(B, C)``."""
        _, z_BD = self.encoder(images_B3SS)
        return self.linear(z_BD.relu() if self.non_negative else z_BD)


@torch.no_grad()
def with_common_lengths(encoder: Encoder, images: Images) -> Encoder:
    """A copy whose projector has hidden and last outputs with a mean squared length of ``SQUARED_LENGTH``.

    Each of the projector's layers is multiplied by one number. As ReLU is homogeneous, this changes f(x) by one factor
    and nothing else. The contrastive loss depends on directions alone and leaves lengths to chance: without this, a
    learning rate would mean something else for every encoder.

    Args:
        encoder: with or without a ReLU at its end.
        images: of the training, on which lengths are measured.
    """
    scaled = copy.deepcopy(encoder).eval()
    first, relu, last = scaled.projector
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    count = len(images.labels_N)
    indices = torch.linspace(0, count - 1, min(count, _LENGTH_IMAGES)).long().unique()
    squares = []
    for _, pixels_B3SS in images.batches(indices.split(_BATCH)):
        hidden_BH = relu(first(scaled(scaled.normalised(pixels_B3SS))[0]))
        squares.append(torch.stack([hidden_BH.square().sum(1), last(hidden_BH).square().sum(1)]))
    hidden, output = (SQUARED_LENGTH / torch.cat(squares, 1).mean(1)).sqrt()
    first.weight.mul_(hidden)
    first.bias.mul_(hidden)
    last.weight.mul_(output / hidden)
    last.bias.mul_(output)
    return scaled


def even_batches(indices_N: torch.Tensor, batch_size: int) -> tuple[torch.Tensor, ...]:
    """Split ``indices_N`` into batches as even as possible: all images, and never one image alone.

    A batch norm has no statistics of a single image. Batches are no larger than ``batch_size``, except for 3 images
    where it is 2.
    """
    count = len(indices_N)
    return indices_N.tensor_split(max(1, min(-(-count // batch_size), count // 2)))


class Training:
    """One run.

    Args:
        network: on the device.
        data: both splits.
        settings: of finetuning.
        dtype: the precision of products.
        generator: of the orders and the augmentations, on the CPU.
        compiled: whether to use ``torch.compile`` in training.
    """

    def __init__(
        self,
        network: Classifier,
        data: ImageData,
        settings: Finetune,
        dtype: torch.dtype,
        generator: torch.Generator,
        compiled: bool = False,
    ) -> None:
        self.network, self.data, self.settings, self.dtype = network, data, settings, dtype
        self.forward = torch.compile(network) if compiled else network
        self.generator = generator
        self.augment = Augment(network.encoder.config.image_size, CROP_MIN)
        self.device = data.train.device

    def run(self, indices_N: torch.Tensor, labels_N: torch.Tensor) -> Curves:
        """Train, and classify the validation images after each epoch.

        Args:
            indices_N: of the training images that are used.
            labels_N: of all training images, right or wrong.

        Raises:
            RunError: if the loss is not finite.
        """
        epochs = self.settings.epochs
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=self.settings.learning_rate,
            momentum=_MOMENTUM,
            weight_decay=self.settings.weight_decay,
        )
        steps = len(even_batches(indices_N, self.settings.batch_size))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * steps)
        curves = Curves([], [], [])
        for epoch in range(1, epochs + 1):
            loss, accuracy = self._epoch(epoch, indices_N, labels_N, optimizer, schedule)
            curves.train_loss.append(loss)
            curves.train_accuracy.append(accuracy)
            curves.val_accuracy.append(self.accuracy(self.data.val))
        return curves

    def _epoch(
        self,
        epoch: int,
        indices_N: torch.Tensor,
        labels_N: torch.Tensor,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> tuple[float, float]:
        """Mean loss and accuracy over the epoch's batches."""
        self.network.train()
        order_N = indices_N[torch.randperm(len(indices_N), generator=self.generator)]
        parts = even_batches(order_N, self.settings.batch_size)
        losses, correct = [], []
        for indices_B, pixels_B3SS in self.data.train.batches(parts):
            labels_B = labels_N[indices_B].to(self.device, non_blocking=True)
            images_B3SS = self.network.encoder.standardised(self.augment(pixels_B3SS, self.generator))
            with autocast(self.device, self.dtype):
                logits_BC = self.forward(images_B3SS)
            loss = F.cross_entropy(logits_BC.float(), labels_B)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            correct.append((logits_BC.argmax(-1) == labels_B).sum())
        # Read once an epoch: a number read in every step would make the device wait.
        losses_T = torch.stack(losses).double().cpu()
        divergent = (~losses_T.isfinite()).nonzero()
        if len(divergent):
            raise RunError(
                f"the loss is not finite at step {int(divergent[0]) + 1} of epoch {epoch}. Lower --learning-rate."
            )
        sizes_T = torch.tensor([len(part) for part in parts], dtype=torch.float64)
        loss_mean = float(losses_T @ sizes_T / sizes_T.sum())
        return loss_mean, int(torch.stack(correct).sum()) / len(indices_N)

    @torch.inference_mode()
    def accuracy(self, images: Images) -> float:
        """The accuracy on a split's images and their own labels, in evaluation mode."""
        self.network.eval()
        parts = torch.arange(len(images.labels_N)).split(_BATCH)
        correct = []
        for indices_B, pixels_B3SS in images.batches(parts):
            with autocast(self.device, self.dtype):
                logits_BC = self.network(self.network.encoder.normalised(pixels_B3SS))
            correct.append((logits_BC.argmax(-1) == images.labels_N[indices_B].to(self.device)).sum())
        return int(torch.stack(correct).sum()) / len(images.labels_N)


_SIMCLR = "simclr"
_SELECTION = ("objectives", "fractions", "noise_rates", "draws")  # settings that select runs and change none of them


class Run(NamedTuple):
    """The identity of a run on one encoder; the fields are keys of the record."""

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
