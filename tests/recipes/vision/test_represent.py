"""Representations: the encoders', one ReLU apart, and the autoencoder's; and their caches."""

from __future__ import annotations

from collections.abc import Callable

import torch

from monolora.recipes.vision.encoder import Encoder, load_encoder
from monolora.recipes.vision.images import ImageData
from monolora.recipes.vision.records import encoder_folder
from monolora.recipes.vision.represent import features_of
from monolora.recipes.vision.sae_model import TopKAutoencoder, save_sae
from monolora.recipes.vision.settings import Settings

CPU = torch.device("cpu")


def test_features_are_the_networks_output(
    settings: Settings, data: ImageData, make_encoder: Callable[..., Encoder]
) -> None:
    encoder = make_encoder("simclr")
    found = features_of(settings.common, "simclr", 0, data, CPU)
    images = (data.val.pixels_N3SS / 255 - torch.tensor(data.train.mean).view(3, 1, 1)) / torch.tensor(
        data.train.std
    ).view(3, 1, 1)
    with torch.no_grad():
        expected = encoder(images)[1]
    torch.testing.assert_close(found.val_ND, expected, rtol=1e-4, atol=1e-5)
    assert found.train_ND.shape == (48, 16)
