"""Training of the autoencoder: what it reaches, its options against formulas, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.metrics import r2_score
from torch import nn

from monolora.errors import InputError, RunError
from monolora.recipes.vision import autoencoder
from monolora.recipes.vision.autoencoder import (
    TopKAutoencoder,
    _Trainer,
    auxiliary_loss,
    quality_of,
    remove_parallel_gradient,
    train_sae,
)
from monolora.recipes.vision.settings import Sae

FEW = Sae(k=4, epochs=3, batch_size=32, learning_rate=1e-3)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sparse_truth(count: int, seed: int = 0) -> torch.Tensor:
    """Sums of 3 of 32 directions in 24 dimensions, off the origin."""
    generator = torch.Generator().manual_seed(seed)
    places_N3 = torch.rand(count, 32, generator=generator).topk(3).indices
    z_NL = torch.zeros(count, 32).scatter(1, places_N3, 0.5 + torch.rand(count, 3, generator=generator))
    return z_NL @ drawn(32, 24, seed=77) * 0.01 + 0.2


def reconstructed(sae: TopKAutoencoder, x_ND: torch.Tensor) -> torch.Tensor:
    return sae.decode(sae.encode(x_ND)) / sae.scale


def test_it_explains_features_that_are_sparse_in_truth_and_new_ones_too() -> None:
    x_ND, new_ND = sparse_truth(2000), sparse_truth(500, seed=1)
    trained = train_sae(x_ND, Sae(latents=48, k=3, epochs=60, batch_size=128, learning_rate=3e-3), 0)
    assert quality_of(trained.sae, x_ND).explained_variance > 0.85
    assert quality_of(trained.sae, new_ND).explained_variance > 0.8
    assert trained.loss[-1] < trained.loss[0] / 3


def test_explained_variance_is_r2_weighted_by_variance() -> None:
    x_ND = sparse_truth(200)
    sae = train_sae(x_ND, FEW, 0).sae
    expected = r2_score(x_ND, reconstructed(sae, x_ND), multioutput="variance_weighted")
    assert quality_of(sae, x_ND).explained_variance == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("chunk", [7, 4096])
def test_dead_latents_and_zeros_are_counted(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "_CHUNK", chunk)
    x_ND = sparse_truth(100)
    sae = train_sae(x_ND, FEW, 0).sae
    sae.encoder.bias[:6] = -1e6
    rows = sae.encode(x_ND).tolist()
    quality = quality_of(sae, x_ND)
    assert quality.dead == pytest.approx(sum(all(row[i] == 0 for row in rows) for i in range(24)) / 24)
    assert quality.dead >= 6 / 24
    assert quality.zeros == pytest.approx(sum(row.count(0) for row in rows) / (100 * 24))


def test_the_first_loss_is_that_of_the_untrained_autoencoder() -> None:
    x_ND = sparse_truth(64)
    sae = TopKAutoencoder(24, 24, 4, torch.Generator().manual_seed(5))
    sae.fit_inputs(x_ND.mean(0), x_ND.var(0, correction=0).mean())
    expected = ((reconstructed(sae, x_ND) - x_ND) * sae.scale).square().mean().item()
    loss = train_sae(x_ND, replace(FEW, batch_size=64, epochs=1, auxiliary=1.0), 5).loss[0]
    assert loss == pytest.approx(expected, rel=1e-4)


def test_an_epochs_loss_weighs_images_alike() -> None:
    # at a learning rate of nothing all epochs have one loss, whatever the batches are
    x_ND, still = sparse_truth(100), replace(FEW, learning_rate=0.0)
    whole = train_sae(x_ND, replace(still, batch_size=100), 0).loss
    assert train_sae(x_ND, replace(still, batch_size=99), 0).loss == pytest.approx(whole, rel=1e-5)


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before() -> None:
    x_ND = sparse_truth(100)
    first = train_sae(x_ND, FEW, 0).sae.state_dict()
    before = torch.get_rng_state()
    again, other = (train_sae(x_ND, FEW, seed).sae.state_dict() for seed in (0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["decoder.weight"], other["decoder.weight"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("unit_norm", [False, True])
def test_columns_keep_norm_1_only_where_asked(unit_norm: bool) -> None:
    weight_DL = train_sae(sparse_truth(200), replace(FEW, unit_norm=unit_norm, epochs=5), 0).sae.decoder.weight
    assert torch.allclose(weight_DL.norm(dim=0), torch.ones(24), atol=1e-5) == unit_norm


def test_what_is_left_of_the_gradient_is_square_to_the_columns() -> None:
    decoder = nn.Linear(5, 8, bias=False)
    with torch.no_grad():
        decoder.weight.copy_(nn.functional.normalize(drawn(8, 5), dim=0))
    gradient_DL = drawn(8, 5, seed=1)
    decoder.weight.grad = gradient_DL.clone()
    remove_parallel_gradient(decoder)
    for column, gradient, left in zip(decoder.weight.T, gradient_DL.T, decoder.weight.grad.T, strict=True):
        assert (left @ column).item() == pytest.approx(0, abs=1e-6)
        torch.testing.assert_close(left + column * (gradient @ column), gradient)


def test_the_optimizer_does_not_see_what_would_only_change_norms() -> None:
    steps = _with_a_latent_that_is_never_active(unit_norm=True)
    before_DL = steps.sae.decoder.weight.detach().clone()
    steps.step(sparse_truth(50))
    seen_DL = steps.optimizer.state[steps.sae.decoder.weight]["exp_avg"]
    assert seen_DL.abs().max() > 1e-4
    torch.testing.assert_close((seen_DL * before_DL).sum(0), torch.zeros(24), atol=1e-7, rtol=0)


def test_auxiliary_loss_against_a_loop() -> None:
    sae = TopKAutoencoder(6, 10, 3)
    a_BL, error_BD = drawn(4, 10).relu(), drawn(4, 6, seed=1)
    dead_L = torch.arange(10) % 3 == 0
    expected = 0.0
    for a_L, error_D in zip(a_BL, error_BD, strict=True):
        used = sorted((i for i in range(10) if dead_L[i]), key=lambda i: -float(a_L[i]))[:2]
        explained = sum((a_L[i] * sae.decoder.weight[:, i] for i in used), torch.zeros(6))
        expected += (error_D - explained).square().sum().item() / 24
    assert auxiliary_loss(sae, a_BL, error_BD, dead_L, 2).item() == pytest.approx(expected, rel=1e-5)


def test_auxiliary_loss_moves_dead_latents_only() -> None:
    sae, x_BD = TopKAutoencoder(6, 10, 3), drawn(30, 6)
    dead_L = torch.arange(10) < 4
    error_BD = sae.scaled(x_BD) - sae.decode(sae.encode(x_BD))
    auxiliary_loss(sae, sae.before_top_k(x_BD), error_BD, dead_L, 100).backward()
    for gradient_DL in (sae.decoder.weight.grad, sae.encoder.weight.grad.T):
        assert torch.equal((gradient_DL != 0).any(0), dead_L)


def _with_a_latent_that_is_never_active(**changed: Any) -> _Trainer:
    sae = TopKAutoencoder(24, 24, 4)
    x_ND = sparse_truth(200)
    sae.fit_inputs(x_ND.mean(0), x_ND.var(0, correction=0).mean())
    with torch.no_grad():
        sae.encoder.bias[7] = -1e6
    return _Trainer(sae, replace(FEW, **changed))


def test_idle_latents_count_images() -> None:
    steps = _with_a_latent_that_is_never_active(learning_rate=0.0)
    x_ND = sparse_truth(150)
    for part in x_ND.split([60, 50, 40]):
        steps.step(part)
    active_NL = steps.sae.encode(x_ND) > 0
    expected = []
    for latent in range(24):
        idle = 0
        for part in active_NL[:, latent].split([60, 50, 40]):
            idle = 0 if part.any() else idle + len(part)
        expected.append(idle)
    assert steps.idle_L.tolist() == expected
    assert expected[7] == 150


def test_auxiliary_loss_keeps_more_latents_alive() -> None:
    # one of 48 latents an image and a high learning rate: some of them die
    x_ND = sparse_truth(600)
    hard = Sae(latents=48, k=1, epochs=30, batch_size=64, learning_rate=2e-2, dead_after=600)
    plain, helped = (
        quality_of(train_sae(x_ND, replace(hard, auxiliary=weight), 0).sae, x_ND).dead for weight in (0.0, 1 / 4)
    )
    assert plain > 0.1
    assert helped < plain / 2


def test_an_auxiliary_loss_that_overflows_is_left_out() -> None:
    steps = _with_a_latent_that_is_never_active(auxiliary=1.0, dead_after=1, auxiliary_k=24)
    with torch.no_grad():  # alive before top-k, and never of the largest
        steps.sae.encoder.bias[7] = 1e-3
        steps.sae.encoder.weight[7] = 0
        steps.sae.decoder.weight[:, 7] = 1e30
    steps.idle_L[7] = 1000
    x_BD = sparse_truth(50)
    assert not (steps.sae.encode(x_BD)[:, 7] > 0).any()
    steps.step(x_BD)
    assert all(parameter.isfinite().all() for parameter in steps.sae.parameters())


@pytest.mark.parametrize(
    ("changed", "step"),
    [
        pytest.param({"learning_rate": 1e30}, 2, id="in the second step"),
        pytest.param({"learning_rate": 1e39, "epochs": 1, "batch_size": 200}, 1, id="after the last update"),
    ],
)
def test_a_loss_that_is_not_finite_names_its_step(changed: dict[str, Any], step: int) -> None:
    with pytest.raises(RunError, match=rf"not finite at step {step}; .* Lower --learning-rate"):
        train_sae(sparse_truth(200), replace(FEW, **changed), 0)


def test_steps_are_counted_over_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = _Trainer.step, iter(range(1, 100))

    def step(self: _Trainer, x_BD: torch.Tensor) -> torch.Tensor:
        return real(self, x_BD) * (float("nan") if next(calls) >= 9 else 1)

    monkeypatch.setattr(_Trainer, "step", step)
    with pytest.raises(RunError, match="at step 9;"):  # the second of the third epoch
        train_sae(sparse_truth(100), replace(FEW, batch_size=26), 0)


@pytest.mark.parametrize(
    ("settings", "spoiled", "message"),
    [
        pytest.param(replace(FEW, k=25), None, "--k 25 is more than the autoencoder's 24 latents", id="features"),
        pytest.param(replace(FEW, latents=3), None, "--k 4 is more than the autoencoder's 3 latents", id="latents"),
        pytest.param(FEW, float("nan"), "features are not finite", id="NaN"),
        pytest.param(FEW, float("inf"), "features are not finite", id="infinite"),
        pytest.param(FEW, 0.0, "features of all images are the same", id="collapsed"),
    ],
)
def test_what_cannot_be_trained_is_refused(settings: Sae, spoiled: float | None, message: str) -> None:
    x_ND = sparse_truth(50)
    if spoiled == 0:
        x_ND = x_ND[:1].expand(50, -1).contiguous()
    elif spoiled is not None:
        x_ND[17, 3] = spoiled
    with pytest.raises(InputError, match=message):
        train_sae(x_ND, settings, 0)
