"""Dimensionality and antipodal pairs, against loops and known figures."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.recipes.superposition.toy_model import dimensionality, in_antipodal_pair, represented

PENTAGON = [[math.cos(0.4 * math.pi * k), math.sin(0.4 * math.pi * k)] for k in range(5)]
TETRAHEDRON = [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]


def columns(*features: list[float]) -> torch.Tensor:
    """W whose columns they are."""
    return torch.tensor(features, dtype=torch.float64).T


def random_weights(seed: int, m: int, n: int) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


shapes = given(seed=st.integers(0, 999), m=st.integers(1, 5), n=st.integers(1, 8))


@shapes
@settings(deadline=None)
def test_dimensionality_is_its_formula(seed: int, m: int, n: int) -> None:
    W = random_weights(seed, m, n)
    for i, dims in enumerate(dimensionality(W).tolist()):
        square = sum(float(W[k, i]) ** 2 for k in range(m))
        shared = sum(
            (sum(float(W[k, i]) * float(W[k, j]) for k in range(m)) / math.sqrt(square)) ** 2 for j in range(n)
        )
        assert dims == pytest.approx(square / shared)


@shapes
@settings(deadline=None)
def test_it_stays_with_rotation_and_scale_and_sums_to_m_at_most(seed: int, m: int, n: int) -> None:
    W = random_weights(seed, m, n)
    R = torch.linalg.qr(random_weights(seed + 1, m, m)).Q
    dims = dimensionality(W)
    torch.testing.assert_close(dimensionality(R @ W), dims)
    torch.testing.assert_close(dimensionality(3.0 * W), dims)
    torch.testing.assert_close(represented(R @ W), represented(W))
    torch.testing.assert_close(in_antipodal_pair(R @ W), in_antipodal_pair(W))
    assert float(dims.sum()) <= min(m, n) + 1e-9
    assert bool(((dims > 0) & (dims <= 1 + 1e-12)).all())


@pytest.mark.parametrize(
    ("W", "expected", "pairs"),
    [
        (columns([1, 0], [0, 1]), [1, 1], [False, False]),
        (columns([1, 0], [-1, 0], [0, 1]), [1 / 2, 1 / 2, 1], [True, True, False]),
        (columns(*PENTAGON), [2 / 5] * 5, [False] * 5),
        (columns(*TETRAHEDRON), [3 / 4] * 4, [False] * 4),
        (columns([1, 0], [0, 0]), [1, 0], [False, False]),
        (columns([0, 0]), [0], [False]),
    ],
    ids=["alone", "pair", "pentagon", "tetrahedron", "one unused", "nothing"],
)
def test_known_figures(W: torch.Tensor, expected: list[float], pairs: list[bool]) -> None:
    assert dimensionality(W).tolist() == pytest.approx(expected)
    assert in_antipodal_pair(W).tolist() == pairs


def test_represented_is_a_norm_above_a_half() -> None:
    assert represented(columns([0.3, 0.4], [0.3, 0.41], [-1, 0])).tolist() == [False, True, True]


def test_a_feature_that_is_not_represented_is_in_no_pair() -> None:
    assert in_antipodal_pair(columns([1, 0], [-0.49, 0])).tolist() == [False, False]
    assert in_antipodal_pair(columns([1, 0], [-0.6, 0])).tolist() == [True, True]


def test_opposite_is_a_cosine_below_minus_0_9() -> None:
    for degrees, paired in ((150, False), (160, True), (200, True), (205.9, False)):
        direction = [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]
        assert in_antipodal_pair(columns([1, 0], direction)).tolist() == [paired] * 2


def test_of_two_that_are_opposite_to_a_third_the_nearer_is_its_partner() -> None:
    near, far = ([2 * math.cos(math.radians(d)), 2 * math.sin(math.radians(d))] for d in (178, 170))
    assert in_antipodal_pair(columns(far, [1, 0], near)).tolist() == [False, True, True]


def test_leading_dimensions() -> None:
    stacked = torch.stack([columns([1, 0], [-1, 0], [0, 1]), columns([1, 0], [0, 1], [0, -2])]).expand(4, 2, 2, 3)
    assert in_antipodal_pair(stacked).tolist() == [[[True, True, False], [False, True, True]]] * 4
    # of features 1 and 2 in the second, with norms 1 and 2: 1 / (1 + 4) and 4 / (4 + 1)
    torch.testing.assert_close(dimensionality(stacked)[3, 1], torch.tensor([1.0, 0.2, 0.8], dtype=torch.float64))
    assert represented(stacked).shape == (4, 2, 3)
