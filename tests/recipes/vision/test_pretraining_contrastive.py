"""NT-Xent against a loop, its gradient, and over processes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monolora.recipes.vision.pretraining import nt_xent


def _by_loops(views: list[list[list[float]]], temperature: float) -> float:
    """Equation 1 of Chen et al. (2020), as it is written."""
    flat = [row for view in views for row in view]
    batch = len(views[0])

    def similarity(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / (math.hypot(*a) * math.hypot(*b) * temperature)

    total = 0.0
    for i, anchor in enumerate(flat):
        partner = (i + batch) % (2 * batch)
        others = sum(math.exp(similarity(anchor, other)) for k, other in enumerate(flat) if k != i)
        total -= math.log(math.exp(similarity(anchor, flat[partner])) / others)
    return total / len(flat)


@given(
    batch=st.integers(2, 5),
    dim=st.integers(2, 6),
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.1, 0.2, 1.0]),
)
def test_it_is_the_papers_equation(batch: int, dim: int, seed: int, temperature: float) -> None:
    z = torch.randn(2, batch, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert nt_xent(z, temperature).item() == pytest.approx(_by_loops(z.tolist(), temperature), rel=1e-9)


@pytest.mark.parametrize("non_negative", [False, True])
def test_gradient(non_negative: bool) -> None:
    z = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    loss = (lambda x: nt_xent(x.relu() + 0.1, 0.2)) if non_negative else (lambda x: nt_xent(x, 0.2))
    assert torch.autograd.gradcheck(loss, (z,))


def test_the_scale_of_representations_does_not_matter() -> None:
    z = torch.randn(2, 6, 8)
    torch.testing.assert_close(nt_xent(z, 0.2), nt_xent(z * 17, 0.2))


def test_dead_representations_do_not_break_it() -> None:
    """NCL's ReLU can leave a representation without a positive entry."""
    z = torch.randn(2, 4, 8).relu()
    z[0, 1] = 0
    z.requires_grad_()
    nt_xent(z, 0.2).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
