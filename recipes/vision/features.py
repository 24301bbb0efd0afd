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
from typing import NamedTuple, cast

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import ResNetConfig, ResNetModel

from monolora.errors import InputError, in_one_line
from monolora.files import read_json, saving, write_file, write_json, write_tensors
from monolora.locks import locked
from monolora.recipes.experiment_steps import autocast, dtype_of
from monolora.recipes.vision.autoencoder import TopKAutoencoder, load_sae
from monolora.recipes.vision.images import ImageData, Images
from monolora.recipes.vision.settings import Common
from monolora.run_record import fingerprint_files

WEIGHTS, CONFIG = "encoder.safetensors", "encoder.json"
# The encoder (section 3.1.1): a ResNet-18 and a projector. SimCLR's and NCL's are one ReLU apart.


_STEM_STRIDE = {"cifar": 1, "cifar-strided": 2}


class EncoderConfig(NamedTuple):
    """The architecture of an encoder, and the normalisation of its inputs.

    Attributes:
        non_negative: whether NCL's ReLU is on the projector's output.
        stem: ``cifar`` (3x3, no pooling), ``cifar-strided`` (the same at half the size) or ``imagenet``.
        width: channels of the first stage; ResNet-18 has 64.
        projector_hidden, projector_out: units of the projector's two layers.
        image_size: pixels a side.
        mean, std: of the training images; inputs are normalised by them.
    """

    non_negative: bool
    stem: str
    width: int
    projector_hidden: int
    projector_out: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Encoder(nn.Module):
    """Images to representations."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = _resnet18(config)
        self.projector = nn.Sequential(
            nn.Linear(self.backbone_dim, config.projector_hidden),
            nn.ReLU(),
            nn.Linear(config.projector_hidden, config.projector_out),
        )
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    @property
    def backbone_dim(self) -> int:
        """Dimensions of the backbone's output."""
        return 8 * self.config.width

    def normalised(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        """``uint8`` images as inputs of the network: their centre, normalised, channels last.

        Raises:
            InputError: if they are smaller than the images that the encoder was trained on.
        """
        size = self.config.image_size
        if min(pixels_B3SS.shape[-2:]) < size:
            raise InputError(
                f"The encoder was trained on images of {size} pixels a side, these have "
                f"{min(pixels_B3SS.shape[-2:])}. Give --image-size {size}, as in pretraining."
            )
        top, left = ((side - size) // 2 for side in pixels_B3SS.shape[-2:])
        centre = pixels_B3SS[..., top : top + size, left : left + size]
        return self.standardised(centre.float() / 255)

    def standardised(self, images_B3SS: torch.Tensor) -> torch.Tensor:
        """Images from 0 to 1, normalised by mean and standard deviation, channels last."""
        return ((images_B3SS - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, images_B3SS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Backbone output, shape ``(B, backbone_dim)``, and representation, shape ``(B, projector_out)``."""
        backbone_BF = self.backbone(images_B3SS).pooler_output.flatten(1)
        z_BD = self.projector(backbone_BF)
        return backbone_BF, z_BD.relu() if self.config.non_negative else z_BD


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Write weights and config; :func:`load_encoder` reads them.

    Raises:
        OSError: if the disk does not take them; SafetensorError likewise.
    """
    write_tensors(folder / WEIGHTS, encoder.state_dict())
    write_json(folder / CONFIG, encoder.config._asdict())


def load_encoder(folder: Path, device: torch.device) -> Encoder:
    """The encoder in ``folder``, in evaluation mode, frozen, channels last.

    Raises:
        InputError: if there is none, or its files are damaged.
    """
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} has no encoder. Pretrain first: monolora vision pretrain.")
    try:
        config = read_json(folder / CONFIG, "")
        config |= {name: tuple(config[name]) for name in ("mean", "std")}
        encoder = Encoder(EncoderConfig(**config))
        encoder.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise InputError(f"Cannot load the encoder in {folder}: {in_one_line(error)} Pretrain again.") from error
    moved = cast(Encoder, encoder.to(device).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    return moved.eval().requires_grad_(False)


def _resnet18(config: EncoderConfig) -> ResNetModel:
    width = config.width
    backbone = ResNetModel(
        ResNetConfig(
            embedding_size=width,
            hidden_sizes=[width, 2 * width, 4 * width, 8 * width],
            depths=[2, 2, 2, 2],
            layer_type="basic",
        )
    )
    if config.stem in _STEM_STRIDE:  # 3x3 without pooling: ImageNet's stem would shrink 32 pixels to 8
        stride = _STEM_STRIDE[config.stem]
        backbone.embedder.embedder.convolution = nn.Conv2d(3, width, 3, stride=stride, padding=1, bias=False)
        backbone.embedder.pooler = nn.Identity()
    return backbone


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
