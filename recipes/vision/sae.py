"""Train a top-k sparse autoencoder on SimCLR's features.

    monolora vision sae --config CONFIG [flags]
    monolora vision sae --out runs/cifar100 --seeds 0,1,2 --unit-norm --auxiliary 0.03125

(Section 3.1.1, equation 2.) It is trained in float32 on the representations of OUT/simclr-SEED, and saved in
OUT/sae-SEED.
For a few thousand images use --learning-rate 1e-3: the default, that of Gao et al. (2024), needs thousands of steps.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from monolora.errors import exit_status
from monolora.files import saving
from monolora.locks import locked
from monolora.recipes.experiment_steps import device_of, out_of_memory, results_if_same, write
from monolora.recipes.vision.autoencoder import WEIGHTS, TopKAutoencoder, quality_of, save_sae, train_sae
from monolora.recipes.vision.features import Features, encoder_folder, features_of
from monolora.recipes.vision.images import load_images
from monolora.recipes.vision.settings import Sae, Settings, parse

RECORD = "sae.json"


def run(settings: Settings) -> None:
    """Train the autoencoder of each seed.

    Raises:
        InputError: if an encoder is missing, or the settings do not fit its features.
        RunError: if the loss is not finite, or the device's memory is too small; SaveError if the disk is full.
    """
    device = device_of(settings.common.device)
    data = load_images(settings.data, device)
    for seed in settings.common.seeds:
        features = features_of(settings.common, "simclr", seed, data, device)
        folder = encoder_folder(settings.common.out, "sae", seed)
        with locked(folder):
            print(f"sae-{seed}: {_train_seed(settings.sae, seed, features, folder, device)}", flush=True)


def _train_seed(settings: Sae, seed: int, features: Features, folder: Path, device: torch.device) -> str:
    """Train and save, unless the folder has the autoencoder; returns its summary."""
    own, inputs = asdict(settings), {"features": features.fingerprint}
    if (folder / WEIGHTS).is_file() and results_if_same(folder / RECORD, own, inputs) is not None:
        return "done before"
    sae, results = _train(features, settings, seed, device)
    _save(sae, folder)
    write(folder / RECORD, own, inputs, results)
    return _summary(results)


def _train(
    features: Features, settings: Sae, seed: int, device: torch.device
) -> tuple[TopKAutoencoder, dict[str, Any]]:
    """The autoencoder, and its record's results."""
    start = time.perf_counter()
    with out_of_memory("Lower --batch-size, or use --device cpu."):
        train_ND, val_ND = features.train_ND.to(device), features.val_ND.to(device)
        trained = train_sae(train_ND, settings, seed)
        train, val = quality_of(trained.sae, train_ND), quality_of(trained.sae, val_ND)
    return trained.sae, {
        "explained_variance": {"train": train.explained_variance, "val": val.explained_variance},
        "dead": train.dead,
        "zeros": val.zeros,
        "loss": list(trained.loss),
        "seconds": time.perf_counter() - start,
    }


def _save(sae: TopKAutoencoder, folder: Path) -> None:
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).unlink(missing_ok=True)  # it would not be of the weights that come now
        save_sae(sae, folder)


def _summary(results: dict[str, Any]) -> str:
    explained = results["explained_variance"]
    return (
        f"{explained['train']:.1%} of the variance of training features explained, {explained['val']:.1%} of "
        f"validation's; {results['dead']:.1%} of latents dead, {results['zeros']:.1%} zeros; {results['seconds']:.0f} s"
    )


def main(argv: list[str]) -> int:
    """Train; returns the exit status."""
    run(parse(argv, "sae", __doc__))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
