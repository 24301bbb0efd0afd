"""The autoencoder: equation 2, exactly k of the units, its first weights, and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from monolora.errors import InputError
from monolora.recipes.vision.autoencoder import WEIGHTS, TopKAutoencoder, largest, load_sae, save_sae

CPU = torch.device("cpu")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_sae(dim: int = 6, latents: int = 10, k: int = 3) -> TopKAutoencoder:
    """All of its weights drawn, so that no term is left out for being zero."""
    sae = TopKAutoencoder(dim, latents, k)
    with torch.no_grad():
        for number, parameter in enumerate(sae.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=number))
        sae.scale.fill_(0.5)
    return sae.requires_grad_(False)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_exactly_the_k_largest_are_kept(k: int) -> None:
    a_BL = drawn(7, 10)
    for row, result in zip(a_BL.tolist(), largest(a_BL, k).tolist(), strict=True):
        top = sorted(row, reverse=True)[:k]
        assert result == [value if value in top else 0 for value in row]
        assert np.count_nonzero(result) == k


def test_of_equal_activations_exactly_k_are_kept() -> None:
    assert largest(torch.ones(4, 9), 5).sum(1).tolist() == [5] * 4


def test_latents_and_reconstruction_are_equation_2() -> None:
    sae, x_BD = random_sae(), drawn(20, 6, seed=9)
    weight = {name: tensor.numpy() for name, tensor in sae.state_dict().items()}
    for x_D, z_L, back_D in zip(x_BD, sae.encode(x_BD), sae.decode(sae.encode(x_BD)), strict=True):
        inner = weight["encoder.weight"] @ (0.5 * x_D.numpy() - weight["pre_bias"]) + weight["encoder.bias"]
        expected = np.zeros(10)
        for index in np.argsort(-inner)[:3]:
            expected[index] = max(inner[index], 0)
        np.testing.assert_allclose(z_L, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(back_D, weight["decoder.weight"] @ expected + weight["pre_bias"], rtol=1e-5)


def test_fewer_than_k_are_above_zero_where_fewer_were_before() -> None:
    sae = random_sae(k=8)
    sae.encoder.bias.fill_(-100)
    sae.encoder.bias[:2] = 100
    assert (sae.encode(drawn(5, 6)) > 0).sum(1).tolist() == [2] * 5


def test_the_encoder_starts_as_the_decoders_transpose_with_columns_of_norm_1() -> None:
    sae = TopKAutoencoder(6, 10, 3)
    torch.testing.assert_close(sae.decoder.weight.norm(dim=0), torch.ones(10))
    assert torch.equal(sae.encoder.weight, sae.decoder.weight.T)
    assert not sae.encoder.bias.any()


def test_first_weights_are_of_their_generator_and_leave_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (
        TopKAutoencoder(6, 10, 3, torch.Generator().manual_seed(seed)).decoder.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_inputs_are_fitted_to_a_mean_squared_deviation_of_1() -> None:
    sae, x_ND = TopKAutoencoder(6, 10, 3), 3 + 0.1 * drawn(50, 6)
    sae.fit_inputs(x_ND.mean(0), x_ND.var(0, correction=0).mean())
    centred = sae.scaled(x_ND) - sae.pre_bias
    torch.testing.assert_close(centred.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(centred.square().mean(), torch.ones(()))


def test_a_saved_autoencoder_comes_back(tmp_path: Path) -> None:
    sae, x_BD = random_sae(), drawn(5, 6)
    save_sae(sae, tmp_path)
    loaded = load_sae(tmp_path, CPU)
    assert torch.equal(loaded.encode(x_BD), sae.encode(x_BD))
    assert torch.equal(loaded.decode(loaded.encode(x_BD)), sae.decode(sae.encode(x_BD)))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]


def test_no_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no autoencoder\. Train it first: monolora vision sae"):
        load_sae(tmp_path, CPU)


def test_a_damaged_autoencoder_is_refused(tmp_path: Path) -> None:
    save_sae(random_sae(), tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"Cannot load the autoencoder .* Train it again"):
        load_sae(tmp_path, CPU)
