"""Quartimax: the rotated weights are the same encoder, and sparse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.recipes.superposition.toy_model import quartimax


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int, m: int) -> torch.Tensor:
    return torch.linalg.qr(random(seed, m, m)).Q


@given(seed=st.integers(0, 999), m=st.integers(1, 5), n=st.integers(1, 8))
@settings(deadline=None, max_examples=30)
def test_it_is_a_rotation_that_does_not_lower_the_fourth_powers(seed: int, m: int, n: int) -> None:
    W = random(seed, m, n)
    rotated = quartimax(W)
    torch.testing.assert_close(rotated.T @ rotated, W.T @ W)
    assert float(rotated.pow(4).sum()) >= float(W.pow(4).sum()) * (1 - 1e-9)
    assert bool((rotated.amax(1) == rotated.abs().amax(1)).all())  # the largest entry is positive


def test_two_dimensions_against_all_angles() -> None:
    W = random(1, 2, 6)
    angles = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()
    R = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    best = float((R @ W).pow(4).sum((1, 2)).max())
    assert float(quartimax(W).pow(4).sum()) == pytest.approx(best, rel=1e-5)


ALONE = torch.diag(torch.tensor([1.0, 0.9, 0.8, 1.1])).double()
PAIRS = torch.tensor(
    [
        [1.0, 0, 0, -0.9, 0, 0, 0, 0],
        [0, 0.8, 0, 0, 0, -1.1, 0, 0],
        [0, 0, 1, 0, -0.95, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0.9, -1],
    ]
).double()


@pytest.mark.parametrize("hidden", [ALONE, PAIRS], ids=["alone", "pairs"])
@pytest.mark.parametrize("seed", range(5))
def test_a_hidden_rotation_is_undone(hidden: torch.Tensor, seed: int) -> None:
    """Rows by their first large feature, the largest entry positive."""
    expected = torch.where(hidden.abs().argmax(1, keepdim=True) == torch.arange(hidden.shape[1]), hidden.sign(), 0)
    expected = hidden * expected.sum(1, keepdim=True)
    torch.testing.assert_close(quartimax(rotation(seed, 4) @ hidden), expected, rtol=1e-4, atol=1e-4)


def test_twenty_pairs_are_found() -> None:
    """As large as the default: small entries that a trained encoder has do not matter."""
    W = torch.zeros(20, 40, dtype=torch.float64)
    for row, (one, other) in enumerate(torch.randperm(40, generator=torch.Generator().manual_seed(0)).view(20, 2)):
        W[row, one], W[row, other] = 1.0, -1.0
    rotated = quartimax(rotation(0, 20) @ W + 0.02 * random(2, 20, 40))
    assert int((rotated.abs() > 0.5).sum()) == 40
    assert (rotated.abs() > 0.5).sum(1).tolist() == [2] * 20
    first = (rotated.abs() > 0.5).int().argmax(1)
    assert first.tolist() == sorted(first.tolist())


def test_empty_rows_come_last() -> None:
    W = torch.zeros(3, 4, dtype=torch.float64)
    W[0, 1], W[1, 0] = 1.0, 1.0
    rotated = quartimax(W)
    assert rotated.argmax(1).tolist()[:2] == [0, 1]
    assert float(rotated[2].abs().max()) < 1e-9
    assert torch.equal(quartimax(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_precision_is_kept() -> None:
    W = PAIRS.float()
    assert quartimax(W).dtype == torch.float32
    assert torch.equal(quartimax(W), quartimax(W))
