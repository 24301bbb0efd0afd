"""Representations of a data set: who computes them, and their cache on disk; and where every step's results are.

OUT/METHOD-SEED/          an encoder: encoder.safetensors, encoder.json, pretrain.json; features/ of the images
OUT/sae-SEED/             the autoencoder on simclr-SEED: sae.safetensors, sae.json; features/ are its latents
OUT/probe/                REPRESENTATION-SEED.json, and the classifiers as .safetensors
OUT/finetune/             SEED.json
OUT/consistency/          REPRESENTATION-SEED.json
OUT/table1.*, OUT/figures/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from monolora.atomic import saving, write_file, write_json
from monolora.errors import InputError
from monolora.files import read_json
from monolora.locks import locked
from monolora.provenance import fingerprint_files
from monolora.recipes.experiment_steps import autocast, dtype_of
from monolora.recipes.vision.autoencoder import TopKAutoencoder, load_sae
from monolora.recipes.vision.encoder import Encoder, load_encoder
from monolora.recipes.vision.images import ImageData, Images
from monolora.recipes.vision.settings import Common

FOLDER = "features"
_BATCH = 512  # images or features at a time


def encoder_folder(out: str | Path, method: str, seed: int) -> Path:
    """The folder of a representation: ``simclr``, ``ncl`` or ``sae``."""
    return Path(out) / f"{method}-{seed}"


def probe_file(out: str | Path, representation: str, seed: int) -> Path:
    """The record of the classifiers on a representation; their weights have the same name with ``.safetensors``."""
    return Path(out) / "probe" / f"{representation}-{seed}.json"


def finetune_file(out: str | Path, seed: int) -> Path:
    """The record of the finetuned copies of ``simclr-SEED``."""
    return Path(out) / "finetune" / f"{seed}.json"


def consistency_file(out: str | Path, representation: str, seed: int) -> Path:
    """The record of a representation's semantic consistency."""
    return Path(out) / "consistency" / f"{representation}-{seed}.json"


class Features(NamedTuple):
    """The representations of both splits.

    Attributes:
        train_ND, val_ND: ``float32``, on the CPU, memory-mapped.
        fingerprint: of the weights, the precision and the images that they depend on.
    """

    train_ND: torch.Tensor
    val_ND: torch.Tensor
    fingerprint: str


class Representation(NamedTuple):
    """The frozen networks that turn images into a representation.

    Attributes:
        encoder: images to features.
        sae: features to latents, of the representation ``sae`` alone.
        dtype: the precision of the encoder's products; the autoencoder works in float32.
    """

    encoder: Encoder
    sae: TopKAutoencoder | None
    dtype: torch.dtype

    def of_images(self, images_B3SS: torch.Tensor) -> torch.Tensor:
        """Normalised images (``encoder.normalised``) to representations, ``float32``, ``(B, D)``."""
        with autocast(images_B3SS.device, self.dtype):
            z_BD = self.encoder(images_B3SS)[1].float()
        return z_BD if self.sae is None else self.sae.encode(z_BD)

    def of_pixels(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        """``uint8`` images on the device to representations, ``float32``, ``(B, D)``."""
        return self.of_images(self.encoder.normalised(pixels_B3SS))

    def of_all(self, images: Images) -> torch.Tensor:
        """A split's representations in its order: ``float32``, ``(N, D)``, on the CPU."""
        parts = torch.arange(len(images.labels_N)).split(_BATCH)
        with torch.inference_mode():
            return torch.cat([self.of_pixels(pixels).cpu() for _, pixels in images.batches(parts)])


def load_representation(common: Common, name: str, seed: int, device: torch.device) -> Representation:
    """The representation ``simclr``, ``ncl`` or ``sae`` of a seed.

    Raises:
        InputError: if it has not been trained, or its files are damaged.
    """
    sae = load_sae(encoder_folder(common.out, "sae", seed), device) if name == "sae" else None
    encoder = load_encoder(encoder_folder(common.out, "simclr" if name == "sae" else name, seed), device)
    return Representation(encoder, sae, dtype_of(common.precision, device))


def features_of(common: Common, name: str, seed: int, data: ImageData, device: torch.device) -> Features:
    """The representations of both splits, from the cache if it is of the same weights and images.

    Raises:
        InputError: if it has not been trained, or its files are damaged.
        SaveError: if the disk does not take the cache.
    """
    representation = load_representation(common, name, seed, device)
    folder = encoder_folder(common.out, name, seed)
    key = {
        "weights": fingerprint_files(folder),
        "train": data.train.fingerprint,
        "val": data.val.fingerprint,
        "precision": str(representation.dtype),
    }
    sae = representation.sae
    if sae is None:
        return cached_features(folder, key, lambda split: representation.of_all(getattr(data, split)))
    # The latents are computed from SimCLR's cached features, so that the images pass through the encoder once.
    simclr = features_of(common, "simclr", seed, data, device)
    return cached_features(folder, key | {"features": simclr.fingerprint}, lambda split: _latents(sae, simclr, split))


def _latents(sae: TopKAutoencoder, simclr: Features, split: str) -> torch.Tensor:
    with torch.inference_mode():
        x_ND = getattr(simclr, f"{split}_ND")
        return torch.cat([sae.encode(part.to(sae.scale.device)).cpu() for part in x_ND.split(_BATCH)])


def cached_features(folder: Path, key: Mapping[str, str], compute: Callable[[str], torch.Tensor]) -> Features:
    """The representations in ``folder/features``, computed anew unless their key is the same.

    Args:
        folder: of the weights.
        key: everything that the representations depend on.
        compute: gives the representations of one split, ``train`` or ``val``, ``(N, D)``.

    Raises:
        SaveError: if the disk does not take them.
    """
    cache = folder / FOLDER
    about = cache / "features.json"
    if not _has_key(about, key):
        with saving(cache):
            cache.mkdir(parents=True, exist_ok=True)
        with locked(cache, waits=True):  # of several steps that run together one computes, the others wait
            if not _has_key(about, key):
                about.unlink(missing_ok=True)
                for split in ("train", "val"):
                    _save(cache / f"{split}.npy", compute(split))
                with saving(cache):
                    write_json(about, key)
    # copy-on-write: torch warns of memory that it could not write to
    train, val = (torch.from_numpy(np.load(cache / f"{split}.npy", mmap_mode="c")) for split in ("train", "val"))
    return Features(train, val, "-".join(key.values()))


def _save(file: Path, features_ND: torch.Tensor) -> None:
    """Write a new file, then rename it: the old one may still be mapped."""
    with saving(file.parent):
        write_file(file, lambda aside: np.save(aside, features_ND.numpy()))


def _has_key(about: Path, key: Mapping[str, str]) -> bool:
    try:
        return bool(read_json(about, "") == dict(key))
    except InputError:
        return False
