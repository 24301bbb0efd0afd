"""One step of pretraining on the pictures, in one process or several: what the tests compare.

Run by a launcher, it writes the weights after the step: ``pretraining_step.py FOLDER METHOD OUT``. Batch norms are in
evaluation mode: only their statistics depend on how the images are shared among processes or parts.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from monolora.recipes.vision.features import Encoder, EncoderConfig
from monolora.recipes.vision.images import load_images
from monolora.recipes.vision.pretraining import Pretraining
from monolora.recipes.vision.settings import Data, Pretrain


def pretraining(folder: Path, method: str, **changed: object) -> Pretraining:
    """Fresh weights, float32, batches of 16."""
    settings = Pretrain(**{"batch_size": 16, "warmup_epochs": 1, "epochs": 4} | changed)  # type: ignore[arg-type]
    images = load_images(Data(dataset=str(folder), image_size=12), torch.device("cpu")).train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Encoder(EncoderConfig(method == "ncl", "cifar", 8, 32, 16, 12, images.mean, images.std))
    return Pretraining(settings, encoder, images, seed=0, accelerator=Accelerator(cpu=True), dtype=torch.float32)


def step_of(training: Pretraining) -> dict[str, torch.Tensor]:
    """The weights after a first step on the first batch; every process augments its own images from its own numbers."""
    training.encoder.eval()
    training.optimizer.set_lr(0.3)
    pixels = training.images.pixels_N3SS[:16]
    views = torch.stack([training.encoder.standardised(view / 255) for view in (pixels, pixels.flip(-1))])
    own = slice(training.accelerator.process_index, None, training.accelerator.num_processes)
    training._step(views[:, own], training.images.labels_N[:16][own])
    return training.encoder.state_dict()


if __name__ == "__main__":
    training = pretraining(Path(sys.argv[1]), sys.argv[2])
    print(training.accelerator.num_processes, "processes")
    weights = step_of(training)
    if training.accelerator.is_main_process:
        torch.save(weights, sys.argv[3])
    training.accelerator.end_training()
