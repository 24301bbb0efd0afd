"""What turns images into each representation: SimCLR's encoder, NCL's, or the autoencoder on SimCLR's."""

from __future__ import annotations

from typing import NamedTuple

import torch

from monolora.fingerprints import fingerprint_files
from monolora.recipes.experiments.devices import autocast, dtype_of
from monolora.recipes.vision.encoder import Encoder, load_encoder
from monolora.recipes.vision.features import Features, cached_features
from monolora.recipes.vision.images import ImageData, Images
from monolora.recipes.vision.places import encoder_folder
from monolora.recipes.vision.sae_model import TopKAutoencoder, load_sae
from monolora.recipes.vision.settings import Common

_BATCH = 512


class Representation(NamedTuple):
    """Frozen networks and how they run.

    Attributes:
        encoder: images to features.
        sae: features to latents, for the representation ``sae``.
        dtype: the precision of the encoder's products.
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
    """The representation of both splits, from its cache where that is of the same weights and images.

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
    below = features_of(common, "simclr", seed, data, device)
    return cached_features(folder, key | {"features": below.fingerprint}, lambda split: _latents(sae, below, split))


def _latents(sae: TopKAutoencoder, below: Features, split: str) -> torch.Tensor:
    with torch.inference_mode():
        x_ND = getattr(below, f"{split}_ND")
        return torch.cat([sae.encode(part.to(sae.scale.device)).cpu() for part in x_ND.split(_BATCH)])
