"""Moments equal what numpy computes from the raw activations."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.merge.least_squares import Moments
from tests.support.merge_inputs import moments, units_of

A = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


def _inputs(seed: int, tokens: int) -> torch.Tensor:
    return torch.randn(tokens, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def _check(found: Moments, x: np.ndarray, h: np.ndarray) -> None:
    n = len(x)
    expected = (x.mean(0), h.mean(0), x.T @ x / n, h.T @ x / n, h.T @ h / n)
    assert found.tokens == n
    for got, want in zip(found[1:], expected, strict=True):
        assert got.dtype == torch.float64
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-10, atol=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 99), tokens=st.integers(1, 40), batches=st.integers(1, 5))
def test_of(seed: int, tokens: int, batches: int) -> None:
    x = _inputs(seed, tokens)
    _check(moments(x, A, batches=batches), x.numpy(), units_of(x, A).numpy())


@settings(deadline=None)
@given(seed=st.integers(0, 99), tokens=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_pooled(seed: int, tokens: tuple[int, int]) -> None:
    x, y = _inputs(seed, tokens[0]), _inputs(seed + 100, tokens[1])
    both = torch.cat([x, y])
    _check(moments(x, A).pooled(moments(y, A)), both.numpy(), units_of(both, A).numpy())


@settings(deadline=None)
@given(seed=st.integers(0, 99), tokens=st.integers(1, 40))
def test_about(seed: int, tokens: int) -> None:
    x, x0, h0 = _inputs(seed, tokens), _inputs(seed + 200, 1)[0], _inputs(seed + 300, 1)[0, :3]
    _check(moments(x, A).about(x0, h0), (x - x0).numpy(), (units_of(x, A) - h0).numpy())
