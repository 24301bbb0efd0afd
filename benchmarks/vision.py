"""The vision recipes against plain ones, in one run.

    python benchmarks/vision.py --config recipes/vision/configs/cifar100-small.yaml --out vision.json

pretraining  images/s over those of the plain loop (worker processes, PIL image by image, float32; and the same in the
             recipe's precision), the same encoder, loss and optimizer; and the share of a step that is not the network
views        milliseconds for a view of a batch, beside kornia's
probe        all noise rates and seeds at once over one classifier trained plainly (nn.Linear, autograd, SGD)
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import kornia.augmentation as K
import torch
from accelerate import Accelerator
from plain_pretraining import batches, step
from rich.console import Console
from rich.table import Table
from rounds import flag_parser, in_turns, machine, of_groups, save, spread

from monolora.recipes.experiment_steps import device_of, dtype_of, noisy_labels
from monolora.recipes.vision.images import Images, load_images
from monolora.recipes.vision.linear_probe import (
    CROSS_ENTROPY,
    cached_source,
    feature_scale,
    plain_probe,
    shuffled,
    train_probes,
)
from monolora.recipes.vision.pretrain import new_pretraining
from monolora.recipes.vision.pretraining import ClippedLars, Pretraining
from monolora.recipes.vision.settings import Common, Probe, Settings, parse

PARTS = ("pretraining", "views", "probe")


def main() -> None:
    parser = flag_parser(__doc__)
    parser.add_argument("--config", default="recipes/vision/configs/cifar100-small.yaml", help="default: %(default)s")
    parser.add_argument("--dataset", help="instead of the config's")
    parser.add_argument("--rounds", type=int, default=10, help="of each part (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="of pretraining in a round (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of the plain loop (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    flags = parser.parse_args()
    words = ["--config", flags.config, "--out", "unused", *(["--dataset", flags.dataset] if flags.dataset else [])]
    settings = parse(words, "pretrain")
    images = load_images(settings.data, device_of(settings.common.device)).train
    measure = {
        "pretraining": lambda: pretraining(settings, images, flags.rounds, flags.steps, flags.workers),
        "views": lambda: views(settings, images, flags.rounds),
        "probe": lambda: probe(flags.rounds),
    }
    report = {"flags": vars(flags), "machine": machine("transformers", "kornia", "pytorch-optimizer")}
    report |= {part: measure[part]() for part in flags.parts}
    show(report)
    save(report, flags.out)


def _done(found: object) -> None:
    """Drop the result: a number that a side returns is taken for its seconds."""


def _training(settings: Settings, images: Images) -> Pretraining:
    return new_pretraining(settings, "simclr", 0, images, Accelerator(cpu=images.device.type == "cpu"))


def pretraining(settings: Settings, images: Images, rounds: int, steps: int, workers: int) -> dict[str, Any]:
    """Seconds of so many steps of each side, as ratios."""
    batch = settings.pretrain.batch_size
    own = _training(settings, images._replace(
        pixels_N3SS=images.pixels_N3SS[: steps * batch], labels_N=images.labels_N[: steps * batch]
    ))  # fmt: skip
    fixed = own._views(images.pixels_N3SS[:batch], 0), own._labels[:batch]

    def network() -> None:
        for _ in range(steps):
            own._step(*fixed)

    sides = {"monolora": lambda: _done(own.run_epoch()), "network": network}
    for name, dtype in (
        ("plain", torch.float32),
        ("plain-precision", dtype_of(settings.common.precision, images.device)),
    ):
        sides[name] = partial(_plain, settings, images, steps, workers, dtype)
    seconds = in_turns(sides, rounds)
    return {
        "images_per_second": {name: spread([steps * batch / each for each in seconds[name]]) for name in sides},
        "ratio": of_groups(seconds, lambda each: each["plain"] / each["monolora"]),
        "ratio_in_the_same_precision": of_groups(seconds, lambda each: each["plain-precision"] / each["monolora"]),
        "share_not_network": of_groups(seconds, lambda each: 1 - each["network"] / each["monolora"]),
    }


def _plain(settings: Settings, images: Images, steps: int, workers: int, dtype: torch.dtype) -> float:
    """Seconds of some steps, once the workers have delivered their first batch."""
    own, device = settings.pretrain, images.device
    encoder = _training(settings, images).encoder.train()
    optimizer = ClippedLars(
        encoder.parameters(), lr=0.1, momentum=own.momentum, weight_decay=own.weight_decay, trust=own.trust
    )
    loader = batches(images._replace(pixels_N3SS=images.pixels_N3SS.cpu()), own.batch_size, workers)
    step(encoder, optimizer, next(loader), own.temperature, device, dtype)
    start = time.perf_counter()
    for _ in range(steps):
        step(encoder, optimizer, next(loader), own.temperature, device, dtype)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def views(settings: Settings, images: Images, rounds: int) -> dict[str, Any]:
    """Milliseconds of a view of a batch, ours and kornia's."""
    own, size = settings.pretrain, settings.data.image_size
    pixels = images.pixels_N3SS[: own.batch_size]
    augment = _training(settings, images).augment
    generator = torch.Generator().manual_seed(0)
    theirs = torch.nn.Sequential(
        K.RandomResizedCrop((size, size), scale=(own.crop_min, 1.0), cropping_mode="resample"),
        K.ColorJitter(own.jitter, own.jitter, own.jitter, own.jitter / 4, p=own.jitter_probability),
        # without weights of its own, version 0.9.0 raises
        K.RandomGrayscale(torch.tensor([0.299, 0.587, 0.114], device=images.device), p=own.grey_probability),
        K.RandomHorizontalFlip(),
    )
    sides = {
        "monolora": lambda: _done(augment(pixels, generator)),
        "kornia": lambda: _done(theirs(pixels.float() / 255)),
    }
    seconds = in_turns(sides, 5 * rounds)
    return {
        "milliseconds": {name: spread([1000 * each for each in seconds[name]]) for name in sides},
        "ratio": of_groups(seconds, lambda each: each["kornia"] / each["monolora"]),
    }


def probe(rounds: int, images: int = 10_000, dim: int = 512, classes: int = 20) -> dict[str, Any]:
    """All noise rates and label seeds at once, and one classifier alone, plainly: seconds of ten epochs."""
    settings = Probe(epochs=10)
    device = device_of(Common().device)
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.randint(classes, (images,), generator=generator)
    middles_CD = torch.randn(classes, dim, generator=generator)
    x_ND = (middles_CD[labels_N] + 3 * torch.randn(images, dim, generator=generator)).to(device)
    noisy = [
        noisy_labels(labels_N, classes, rate, [draw])
        for rate in settings.noise_rates
        for draw in range(settings.label_seeds)
    ]

    def orders(epoch: int) -> Sequence[torch.Tensor]:
        return shuffled(images, settings.batch_size, [epoch])

    def batched(labels_MN: torch.Tensor, dtype: torch.dtype) -> None:
        source = cached_source(x_ND, orders, dtype, device)
        train_probes(source, labels_MN, classes, [CROSS_ENTROPY] * len(labels_MN), settings, dtype, device)

    def plain() -> None:
        scaled = x_ND / feature_scale(x_ND)
        plain_probe(
            scaled, labels_N.to(device), classes, lambda epoch: [each.to(device) for each in orders(epoch)], settings
        )

    fast = dtype_of(Common().precision, device)
    sides = {
        "all": lambda: batched(torch.stack(noisy), fast),
        "all-float32": lambda: batched(torch.stack(noisy), torch.float32),
        "one": lambda: batched(labels_N[None], fast),
        "plain": plain,
    }
    seconds = in_turns(sides, 2 * rounds)
    return {
        "seconds": {name: spread(seconds[name]) for name in sides},
        **{
            f"{name}_over_plain": of_groups(seconds, lambda each, name=name: each[name] / each["plain"])
            for name in ("all", "all-float32", "one")
        },
    }


def show(report: dict[str, Any]) -> None:
    """The ratios, with the smallest and largest of fifths of the rounds."""
    table = Table(title=report["machine"]["device"])
    for heading in ("what", "median", "smallest", "largest"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for part in (each for each in PARTS if each in report):
        for name, found in report[part].items():
            of_sides = {"": found} if "median" in found else found
            for side, each in of_sides.items():
                numbers = [f"{each[key]:,.2f}" for key in ("median", "smallest", "largest")]
                table.add_row(f"{part}, {name.replace('_', ' ')}{side and f': {side}'}", *numbers)
    Console().print(table)


if __name__ == "__main__":
    main()
