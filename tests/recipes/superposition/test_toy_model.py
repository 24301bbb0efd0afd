"""Encoders trained together are those trained alone, and have the geometry that the paper expects."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from monolora.errors import RunError
from monolora.recipes.experiment_steps import generator_of
from monolora.recipes.superposition.settings import Run
from monolora.recipes.superposition.toy_model import (
    Encoders,
    dimensionality,
    importances,
    in_antipodal_pair,
    reconstruction_loss,
    represented,
    samples,
    train_encoders,
)

CPU = torch.device("cpu")
SHORT = Run(features=7, dimensions=3, sparsities=(0.0, 0.5, 0.9), seeds=3, encoder_steps=40, encoder_batch=16)


@pytest.fixture(scope="module")
def together() -> Encoders:
    return train_encoders(SHORT, CPU)


def test_shapes(together: Encoders) -> None:
    assert [tensor.shape for tensor in together] == [(3, 3, 3, 7), (3, 3, 7), (3, 3)]
    assert {tensor.dtype for tensor in together} == {torch.float32}


@pytest.mark.parametrize("index", range(3))
def test_together_is_alone(together: Encoders, index: int) -> None:
    """One sparsity, one seed: a batch of one."""
    alone = train_encoders(replace(SHORT, sparsities=(SHORT.sparsities[index],), seeds=1), CPU)
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours[index, 0], theirs[0, 0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("index", "seed"), [(0, 1), (2, 2)])
def test_it_is_plain_adam(together: Encoders, index: int, seed: int) -> None:
    """One encoder, from the seed's own initial weights and samples; the learning rate falls as a cosine."""
    W = (torch.randn(3, 7, generator=generator_of([seed, 0])) * math.sqrt(2 / 10)).requires_grad_()
    b = torch.zeros(7, requires_grad=True)
    adam, own = torch.optim.Adam([W, b], lr=0.01), generator_of([seed, 1])
    v_tBn = torch.cat([torch.rand(steps, 16, 7, generator=own) for steps in (16, 16, 8)])
    for step, v_Bn in enumerate(v_tBn):
        sparsity = SHORT.sparsities[index]
        x_Bn = ((v_Bn - sparsity) / (1 - sparsity)).clamp(min=0)
        adam.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * step / 40))
        adam.zero_grad()
        error_Bn = x_Bn - torch.relu(x_Bn @ W.T @ W + b)
        (0.95 ** torch.arange(7) * error_Bn**2).sum(1).mean().backward()
        adam.step()
    torch.testing.assert_close(together.W_Kmn[index, seed], W.detach(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(together.b_Kn[index, seed], b.detach(), rtol=1e-3, atol=1e-5)


def test_more_seeds_have_the_fewer_among_them(together: Encoders) -> None:
    fewer = train_encoders(replace(SHORT, seeds=2), CPU)
    torch.testing.assert_close(together.W_Kmn[:, :2], fewer.W_Kmn, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(together.W_Kmn[:, 0], together.W_Kmn[:, 1], atol=0.1)


def test_one_step_of_adam_from_the_same_weights_at_all_sparsities() -> None:
    """Adam's first step is the learning rate in every entry whose gradient is not 0."""
    first, second = (
        train_encoders(replace(SHORT, encoder_steps=1, encoder_learning_rate=rate), CPU) for rate in (1e-3, 1e-9)
    )
    start_smn = second.W_Kmn
    torch.testing.assert_close(start_smn[0], start_smn[2])
    torch.testing.assert_close(first.W_Kmn, start_smn, rtol=0, atol=1.01e-3)
    step = (first.W_Kmn - start_smn).abs()
    assert float((step > 0.99e-3).float().mean()) > 0.8


def test_initial_weights_have_variance_2_over_n_plus_m() -> None:
    wide = Run(
        features=200, dimensions=100, sparsities=(0.0,), seeds=1, encoder_steps=1, encoder_batch=2,
        encoder_learning_rate=1e-9,
    )  # fmt: skip
    assert float(train_encoders(wide, CPU).W_Kmn.var()) == pytest.approx(2 / 300, rel=0.03)


def test_loss_is_its_formula() -> None:
    random = torch.Generator().manual_seed(0)
    W_Kmn, x_KBn = torch.randn(2, 3, 4, generator=random), torch.rand(2, 5, 4, generator=random)
    b_K1n, importance = torch.randn(2, 1, 4, generator=random), [1.0, 0.5, 0.25, 0.125]
    losses = reconstruction_loss(W_Kmn, b_K1n, x_KBn, torch.tensor(importance)).tolist()
    for W, b, x_Bn, loss in zip(W_Kmn.tolist(), b_K1n.tolist(), x_KBn.tolist(), losses, strict=True):
        total = 0.0
        for x in x_Bn:
            h = [sum(W[k][i] * x[i] for i in range(4)) for k in range(3)]
            for i in range(4):
                out = max(0.0, sum(W[k][i] * h[k] for k in range(3)) + b[0][i])
                total += importance[i] * (x[i] - out) ** 2
        assert loss == pytest.approx(total / 5, rel=1e-5)


def test_importance_decays() -> None:
    assert importances(replace(SHORT, importance_decay=0.5)).tolist() == [0.5**i for i in range(7)]


def test_loss_is_on_fresh_samples(together: Encoders) -> None:
    for index, sparsity in enumerate(SHORT.sparsities):
        x_KBn = samples(torch.rand(1, 50_000, 7, generator=torch.Generator().manual_seed(1)), sparsity)
        expected = reconstruction_loss(
            together.W_Kmn[index, :1], together.b_Kn[index, :1].unsqueeze(1), x_KBn, importances(SHORT)
        )
        torch.testing.assert_close(together.loss_K[index, :1], expected, rtol=0.05, atol=0)


def test_dense_data_give_features_a_dimension_each_and_sparse_data_antipodal_pairs() -> None:
    """Figure 5(a): n = 6 features in m = 3 dimensions.

    A sparse encoder in fifty ends elsewhere (2 of 100), and rounding may choose which: four of 24 may here.
    """
    small = Run(
        features=6, dimensions=3, sparsities=(0.0, 0.9), seeds=24, importance_decay=0.7, encoder_steps=1500,
        encoder_batch=128, encoder_learning_rate=0.03,
    )  # fmt: skip
    trained = train_encoders(small, CPU)
    mono_smn, poly_smn = trained.W_Kmn
    assert represented(mono_smn).tolist() == [[True] * 3 + [False] * 3] * 24  # the important ones
    assert bool((dimensionality(mono_smn)[:, :3] > 0.95).all())
    assert not bool(in_antipodal_pair(mono_smn).any())
    pairs_s = in_antipodal_pair(poly_smn).all(-1)
    assert int(pairs_s.sum()) >= 20
    of_pairs = dimensionality(poly_smn[pairs_s])
    torch.testing.assert_close(of_pairs, torch.full_like(of_pairs, 0.5), rtol=0, atol=0.06)
    # what superposition is for: on sparse data it reconstructs better than features alone
    x_KBn = samples(torch.rand(24, 5_000, 6, generator=torch.Generator().manual_seed(2)), 0.9)
    loss_poly = reconstruction_loss(poly_smn, trained.b_Kn[1].unsqueeze(1), x_KBn, importances(small))
    loss_mono = reconstruction_loss(mono_smn, torch.zeros(24, 1, 6), x_KBn, importances(small))
    assert bool((loss_poly < 0.7 * loss_mono).all())


def test_divergence_names_what_to_lower() -> None:
    with pytest.raises(RunError, match=r"encoders diverged\. Lower --encoder-learning-rate \(1e\+30\)"):
        train_encoders(replace(SHORT, encoder_learning_rate=1e30), CPU)
