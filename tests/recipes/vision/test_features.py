"""Representations: the encoders', one ReLU apart, and the autoencoder's; and their caches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from monolora.recipes.vision.autoencoder import TopKAutoencoder, save_sae
from monolora.recipes.vision.features import Encoder, encoder_folder, features_of, load_representation
from monolora.recipes.vision.images import ImageData
from monolora.recipes.vision.settings import Settings

CPU = torch.device("cpu")


def sae_of(settings: Settings, seed: int = 0) -> TopKAutoencoder:
    """An autoencoder of random weights, saved where the steps look for it."""
    sae = TopKAutoencoder(16, 16, 4, torch.Generator().manual_seed(seed)).requires_grad_(False)
    sae.fit_inputs(torch.full((16,), 0.01), torch.tensor(0.25))
    folder = encoder_folder(settings.common.out, "sae", 0)
    folder.mkdir(parents=True, exist_ok=True)
    save_sae(sae, folder)
    return sae


def when_written(settings: Settings, name: str) -> list[int]:
    folder: Path = encoder_folder(settings.common.out, name, 0) / "features"
    return [(folder / f"{split}.npy").stat().st_mtime_ns for split in ("train", "val")]


def test_features_are_the_networks_output(
    settings: Settings, data: ImageData, make_encoder: Callable[..., Encoder]
) -> None:
    encoder = make_encoder("simclr")
    features = features_of(settings.common, "simclr", 0, data, CPU)
    images = (data.val.pixels_N3SS / 255 - torch.tensor(data.train.mean).view(3, 1, 1)) / torch.tensor(
        data.train.std
    ).view(3, 1, 1)
    with torch.no_grad():
        expected = encoder(images)[1]
    torch.testing.assert_close(features.val_ND, expected, rtol=1e-4, atol=1e-5)
    assert features.train_ND.shape == (48, 16)


def test_the_autoencoders_are_the_latents_of_simclrs(
    settings: Settings, data: ImageData, make_encoder: Callable[..., Encoder]
) -> None:
    make_encoder("simclr")
    sae = sae_of(settings)
    below = features_of(settings.common, "simclr", 0, data, CPU)
    features = features_of(settings.common, "sae", 0, data, CPU)
    for x_ND, z_ND in ((below.train_ND, features.train_ND), (below.val_ND, features.val_ND)):
        torch.testing.assert_close(z_ND, sae.encode(x_ND))
        assert (z_ND >= 0).all()
        assert (z_ND > 0).sum(1).max() == 4


def test_images_that_are_not_cached_are_represented_alike(
    settings: Settings, data: ImageData, make_encoder: Callable[..., Encoder]
) -> None:
    make_encoder("simclr")
    sae_of(settings)
    cached = features_of(settings.common, "sae", 0, data, CPU)
    with torch.no_grad():
        z_ND = load_representation(settings.common, "sae", 0, CPU).of_pixels(data.val.pixels_N3SS)
    torch.testing.assert_close(z_ND, cached.val_ND, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["simclr", "sae"])
def test_features_of_the_same_networks_are_not_computed_again(
    name: str, settings: Settings, data: ImageData, make_encoder: Callable[..., Encoder]
) -> None:
    make_encoder("simclr")
    sae_of(settings)
    first, written = features_of(settings.common, name, 0, data, CPU), when_written(settings, name)
    again = features_of(settings.common, name, 0, data, CPU)
    assert when_written(settings, name) == written
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.train_ND, first.train_ND)


@pytest.mark.parametrize(("name", "other"), [("simclr", "encoder"), ("sae", "encoder"), ("sae", "autoencoder")])
def test_features_of_another_checkpoint_are_computed_anew(
    name: str, other: str, settings: Settings, data: ImageData, make_encoder: Callable[..., Encoder]
) -> None:
    make_encoder("simclr")
    sae_of(settings)
    first = features_of(settings.common, name, 0, data, CPU)
    first_val_ND = first.val_ND.clone()
    if other == "encoder":
        make_encoder("simclr", projector_hidden=24)
    else:
        sae_of(settings, seed=1)
    fresh = load_representation(settings.common, name, 0, CPU)
    features = features_of(settings.common, name, 0, data, CPU)
    assert features.fingerprint != first.fingerprint
    assert not torch.allclose(features.val_ND, first_val_ND)
    with torch.no_grad():
        torch.testing.assert_close(fresh.of_pixels(data.val.pixels_N3SS), features.val_ND, rtol=1e-4, atol=1e-5)


def test_features_of_other_images_are_computed_anew(
    settings: Settings, data: ImageData, make_encoder: Callable[..., Encoder]
) -> None:
    make_encoder("simclr")
    first = features_of(settings.common, "simclr", 0, data, CPU)
    half = data.train._replace(
        pixels_N3SS=data.train.pixels_N3SS[:24], labels_N=data.train.labels_N[:24], fingerprint="half"
    )
    features = features_of(settings.common, "simclr", 0, data._replace(train=half), CPU)
    assert features.train_ND.shape == (24, 16)
    assert features.fingerprint != first.fingerprint


def test_a_cache_that_was_cut_short_is_computed_anew(
    settings: Settings, data: ImageData, make_encoder: Callable[..., Encoder]
) -> None:
    make_encoder("simclr")
    first = features_of(settings.common, "simclr", 0, data, CPU)
    first_val_ND = first.val_ND.clone()
    cache = encoder_folder(settings.common.out, "simclr", 0) / "features"
    (cache / "features.json").unlink()  # written last
    (cache / "val.npy").write_bytes(b"")
    assert torch.equal(features_of(settings.common, "simclr", 0, data, CPU).val_ND, first_val_ND)
