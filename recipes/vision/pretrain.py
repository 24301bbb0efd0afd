"""Contrastive pretraining of encoders: SimCLR's (polysemantic) and NCL's (monosemantic), one ReLU apart.

    monolora vision pretrain --config recipes/vision/configs/cifar100-small.yaml --methods ncl
    accelerate launch -m monolora.recipes.vision.pretrain --config …       (several GPUs; negatives of all of them)

Given again, the same command resumes from the last checkpoint.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from monolora.errors import InputError, exit_status, in_one_line, on_main_process
from monolora.files import saving, write_file, write_text
from monolora.locks import locked, no_empty_folder
from monolora.recipes import experiment_steps
from monolora.recipes.experiment_steps import device_of, dtype_of, out_of_memory
from monolora.recipes.vision.features import WEIGHTS, Encoder, EncoderConfig, encoder_folder, save_encoder
from monolora.recipes.vision.images import Images, load_images
from monolora.recipes.vision.pretraining import Pretraining
from monolora.recipes.vision.settings import Settings, parse
from monolora.runs import check_own

CHECKPOINT, RECORD, METRICS = "last.pt", "pretrain.json", "metrics.jsonl"
_IRRELEVANT = ("methods", "save_epochs")  # settings that change nothing about an encoder


def run(settings: Settings) -> None:
    """Pretrain the encoders that are missing.

    Raises:
        InputError: if the folder holds encoders of other settings, or the batch does not fit the images.
        RunError: if a loss is not finite, memory runs out, or the disk is full.
    """
    accelerator = Accelerator(cpu=device_of(settings.common.device).type == "cpu")
    device = accelerator.device if accelerator.num_processes > 1 else device_of(settings.common.device)
    images = load_images(settings.data, device).train
    _check_batch(settings, len(images.labels_N), accelerator.num_processes)
    for seed in settings.common.seeds:
        for method in settings.pretrain.methods:
            memory = out_of_memory("Lower --batch-size, or raise --accumulation: the same loss, in more parts.")
            with memory, ExitStack() as stack:
                folder = encoder_folder(settings.common.out, method, seed)
                on_main_process(lambda folder=folder, stack=stack: _lock(folder, stack))  # type: ignore[misc]
                _pretrain(settings, method, seed, images, accelerator)


_RESUME = "The last checkpoint is whole; free space, then give the same command again."


def _lock(folder: Path, stack: ExitStack) -> None:
    """Lock the folder until the stack closes.

    Raises:
        InputError: if another process pretrains there, or the folder has weights without a record of pretraining.
    """
    stack.enter_context(locked(folder))
    stack.enter_context(no_empty_folder(folder))
    check_own([folder / WEIGHTS], any((folder / name).is_file() for name in (RECORD, CHECKPOINT)), "pretraining")


def _check_batch(settings: Settings, images: int, processes: int) -> None:
    batch = settings.pretrain.batch_size
    if batch > images:
        raise InputError(f"--batch-size {batch} is more than the {images} training images. Lower it.")
    if batch % processes:
        raise InputError(f"--batch-size {batch} cannot be shared by {processes} processes. Take a multiple.")


def _pretrain(settings: Settings, method: str, seed: int, images: Images, accelerator: Accelerator) -> None:
    folder = encoder_folder(settings.common.out, method, seed)
    own = {name: value for name, value in asdict(settings.pretrain).items() if name not in _IRRELEVANT}
    own |= {"method": method, "seed": seed, "precision": str(dtype_of(settings.common.precision, images.device))}
    inputs = {"train": images.fingerprint}
    if experiment_steps.results_if_same(folder / RECORD, own, inputs) is not None:
        if accelerator.is_main_process:
            print(f"{folder.name}: pretrained before", flush=True)
        return
    training = new_pretraining(settings, method, seed, images, accelerator)
    seconds = _resume(folder, training, own | inputs, accelerator)
    epochs = settings.pretrain.epochs
    while training.epoch < epochs:
        start = time.perf_counter()
        epoch = training.run_epoch()
        seconds += time.perf_counter() - start
        if accelerator.is_main_process:
            _log(folder, epoch._asdict(), epochs)
            if epoch.epoch % settings.pretrain.save_epochs == 0 or epoch.epoch == epochs:
                _save(folder, training, own | inputs, seconds)
    if accelerator.is_main_process:
        _finish(folder, training, own, inputs, seconds)
    accelerator.wait_for_everyone()


def new_pretraining(
    settings: Settings, method: str, seed: int, images: Images, accelerator: Accelerator
) -> Pretraining:
    """The pretraining of one encoder, before its first step.

    Args:
        settings: all sections; those of pretraining, images and precision are used.
        method: ``simclr`` or ``ncl``.
        seed: of the first weights, which both methods share, and of all random numbers.
        images: to train on.
        accelerator: of the processes.
    """
    own = settings.pretrain
    config = EncoderConfig(
        non_negative=method == "ncl",
        stem=own.stem,
        width=own.width,
        projector_hidden=own.projector_hidden,
        projector_out=own.projector_out,
        image_size=settings.data.image_size,
        mean=images.mean,
        std=images.std,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the same first weights for both methods
        encoder = Encoder(config)
    return Pretraining(
        own,
        encoder,
        images,
        seed=seed,
        accelerator=accelerator,
        dtype=dtype_of(settings.common.precision, images.device),
        compiled=settings.common.compile,
    )


def _resume(folder: Path, training: Pretraining, own: dict[str, Any], accelerator: Accelerator) -> float:
    """Load the last checkpoint, if there is one; returns the seconds that its run took so far."""
    path = folder / CHECKPOINT
    if not path.is_file():
        if (folder / RECORD).is_file():
            done = experiment_steps.read(folder / RECORD, "Delete the folder, or take another --out.")
            _refuse_other(folder, done["settings"] | done["inputs"], own)
        return 0.0
    try:
        checkpoint = torch.load(path, map_location=training.device, weights_only=True)
        _refuse_other(folder, json.loads(checkpoint["settings"]), own)
        training.load_state(checkpoint["state"])
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({in_one_line(error)}). Delete {folder} to start again.") from error
    if accelerator.is_main_process:
        lines = (folder / METRICS).read_text().splitlines()[: training.epoch]
        with saving(folder, _RESUME):
            write_text(folder / METRICS, "".join(f"{line}\n" for line in lines))  # drop epochs after the checkpoint
        print(f"{folder.name}: resumes after epoch {training.epoch}", flush=True)
    return float(checkpoint["seconds"])


def _refuse_other(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse settings that would overwrite an encoder: pretraining takes hours."""
    now = json.loads(json.dumps(now))
    changed = [f"{name} {before.get(name)} → {now[name]}" for name in sorted(now) if before.get(name) != now[name]]
    if changed:
        raise InputError(
            f"{folder} holds an encoder of other settings: {', '.join(changed)}. Take another --out, or delete it."
        )


def _log(folder: Path, epoch: dict[str, Any], epochs: int) -> None:
    print(
        f"{folder.name}: epoch {epoch['epoch']}/{epochs}, loss {epoch['loss']:.3f}, online probe "
        f"{epoch['probe_accuracy']:.1%}, zeros {epoch['zeros']:.0%}, {epoch['images_per_second']:,.0f} images/s",
        flush=True,
    )
    with saving(folder, _RESUME):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / METRICS).open("a") as file:
            file.write(json.dumps(epoch) + "\n")


def _save(folder: Path, training: Pretraining, own: dict[str, Any], seconds: float) -> None:
    """Write a new file, then rename it: a killed program leaves the previous checkpoint."""
    checkpoint = {"settings": json.dumps(own), "state": training.state(), "seconds": seconds}
    with saving(folder, _RESUME):
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / CHECKPOINT, lambda aside: torch.save(checkpoint, aside))


def _finish(folder: Path, training: Pretraining, own: dict[str, Any], inputs: dict[str, str], seconds: float) -> None:
    with saving(folder, _RESUME):
        folder.mkdir(parents=True, exist_ok=True)
        save_encoder(training.encoder, folder)
    last = json.loads((folder / METRICS).read_text().splitlines()[-1])
    results = {name: last[name] for name in ("loss", "probe_accuracy", "zeros")}
    images = training.steps_per_epoch * training.settings.batch_size * training.epoch
    results |= {"epochs": training.epoch, "seconds": seconds, "images_per_second": images / seconds}
    experiment_steps.write(folder / RECORD, own, inputs, results)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def main(argv: list[str]) -> int:
    """Pretrain; returns the exit status."""
    run(parse(argv, "pretrain", __doc__))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
