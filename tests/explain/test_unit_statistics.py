"""Sums over batches against numpy's over all of them at once, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monolora.explain.unit_statistics import Moments

CONSTANT = {0: 0.1, 1: 0.3, 2: -0.7, 3: 0.0, 4: 0.6}  # by unit; the last but for its last bit


@pytest.fixture(scope="module")
def batches() -> list[np.ndarray]:
    """Of all sizes; units that are constant, nearly constant, sparse, and two that go together."""
    random = np.random.default_rng(0)
    made = []
    for tokens in random.integers(1, 400, 300):
        h_TU = random.normal(size=(tokens, 9)).astype(np.float32)
        for unit, value in CONSTANT.items():
            h_TU[:, unit] = value
        h_TU[::2, 4] = np.nextafter(h_TU[::2, 4], np.float32(1))
        h_TU[:, 5] = 0.1 + 1e-4 * h_TU[:, 5]
        h_TU[:, 6] = np.maximum(h_TU[:, 6] - 1, 0)
        h_TU[:, 8] += 0.5 * h_TU[:, 7] + 3
        made.append(h_TU)
    return made


@pytest.fixture(scope="module")
def moments(batches: list[np.ndarray]) -> Moments:
    found = Moments(9, True, torch.device("cpu"))
    for h_TU in batches:
        found.add(torch.tensor(h_TU))
    return found


def test_means_are_exact(moments: Moments, batches: list[np.ndarray]) -> None:
    all_TU = np.concatenate(batches).astype(np.float64)
    assert moments.tokens == len(all_TU)
    assert (moments.sum_U / moments.tokens).tolist() == pytest.approx(all_TU.mean(0).tolist(), rel=1e-11)
    assert moments.mean_size().tolist() == pytest.approx(np.abs(all_TU).mean(0).tolist(), rel=1e-11)


def test_what_is_constant_does_not_vary(moments: Moments, batches: list[np.ndarray]) -> None:
    all_TU = np.concatenate(batches).astype(np.float64)
    std_U = moments.std()
    assert std_U[list(CONSTANT)].tolist() == [0] * len(CONSTANT)
    varying = slice(len(CONSTANT), None)
    assert std_U[varying].tolist() == pytest.approx(all_TU.std(0)[varying].tolist(), rel=1e-4)


def test_what_is_constant_goes_with_nothing(moments: Moments, batches: list[np.ndarray]) -> None:
    varying = len(CONSTANT)
    r = np.corrcoef(np.concatenate(batches).astype(np.float64)[:, varying:].T)
    place_UM, r_UM = moments.partners(5)
    for unit in range(9):
        found = dict(zip(place_UM[unit].tolist(), r_UM[unit].tolist(), strict=True))
        if unit in CONSTANT:
            assert found == {-1: 0}
        else:
            expected = {place: r[unit - varying, place - varying] for place in range(varying, 9) if place != unit}
            assert found == pytest.approx(expected | {-1: 0}, abs=1e-4)
    assert place_UM[8, 0] == 7
