"""The canary's shares are least squares, and its check says what is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monolora.vllm import Canary, CanaryError, Share
from monolora.vllm.canary import share_of_way

FINE = Share(1.0, 0.01)


def test_check() -> None:
    Canary("float32", 100, 1e-5, 1e-5, FINE, FINE).check()
    Canary("bfloat16", 100, 0.1).check()


@pytest.mark.parametrize(
    ("canary", "message"),
    [
        (Canary("float32", 100, 0.01), "base model is not transformers'"),
        (Canary("float32", 100, float("nan")), "base model is not transformers'"),
        (Canary("float32", 100, 1e-5, float("nan"), FINE), "answers through the adapter differ"),
        (Canary("float32", 100, 1e-5, 0.01, FINE), "answers through the adapter differ"),
        (Canary("bfloat16", 100, 0.1, 0.1, Share(0.9, 0.2)), "the adapter changes too little"),
        (Canary("bfloat16", 100, 0.1, 0.1, FINE, Share(1.0, 0.2)), "the activation changes too little"),
        (Canary("bfloat16", 100, 0.1, 0.1, Share(0.1, 0.05)), "ignores the adapter"),
        (Canary("bfloat16", 100, 0.1, 0.1, Share(1.4, 0.05), Share(0.1, 0.05)), "ignores the activation"),
        (Canary("bfloat16", 100, 0.1, 0.1, Share(0.5, 0.05), FINE), "50.0% ± 5.0% of the effect of the adapter"),
    ],
)
def test_check_refuses(canary: Canary, message: str) -> None:
    with pytest.raises(CanaryError, match=message):
        canary.check()


def test_share_is_a_regression() -> None:
    """Its value and standard error are those of least squares through the origin with known noise."""
    rng = np.random.default_rng(0)
    zero, way = rng.normal(size=(2, 4000))
    noise = 0.3
    estimates = [
        share_of_way(
            *map(torch.tensor, (zero + 0.7 * way + noise * rng.normal(size=4000), zero, zero + way, way)), noise
        )
        for _ in range(200)
    ]
    values = np.array([estimate.value for estimate in estimates])
    assert abs(values.mean() - 0.7) < 4 * values.std() / 200**0.5
    assert np.isclose(values.std(), estimates[0].error, rtol=0.25)


def test_rounding_of_the_reference_does_not_shrink_a_share() -> None:
    """All three sides are rounded on their own; only the way is known exactly."""
    rng = np.random.default_rng(1)
    way = 0.1 * rng.normal(size=20_000)
    found, zero, one = (exact + 0.1 * rng.normal(size=20_000) for exact in (way, 0 * way, way))
    share = share_of_way(*map(torch.tensor, (found, zero, one, way)), 0.1 * 2**0.5)
    assert share.may_be(1)
    assert abs(share.value - 1) < 0.05
    naive = np.dot(found - zero, one - zero) / np.dot(one - zero, one - zero)
    assert naive < 0.8


def test_share_of_nothing() -> None:
    same = torch.ones(3, dtype=torch.float64)
    share = share_of_way(same, same, same, same - same, 0.1)
    assert (share.error, str(share)) == (float("inf"), "unknown")
