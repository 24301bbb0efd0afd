"""Means by token against numpy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monolora.explain import unit_statistics as module
from monolora.explain.unit_statistics import TokenMeans

CPU = torch.device("cpu")


def test_means_of_tokens_that_come_millions_of_times() -> None:
    """A float32 that has come to 2^22 grows by halves only."""
    means = TokenMeans(2, 8, CPU)
    h_TU, ids_T = torch.tensor([0.4, 0.1]).expand(1_000_000, 2), torch.full((1_000_000,), 3)
    for _ in range(22):
        means.add(h_TU, ids_T)
    top = means.top(1, 1)
    assert top.count_UN.tolist() == [[22_000_000]] * 2
    assert top.mean_UN[:, 0].tolist() == pytest.approx(np.float32([0.4, 0.1]).astype(np.float64).tolist(), rel=1e-10)


@pytest.mark.parametrize("sign", [1, -1])
def test_equals_numpy(sign: int) -> None:
    random = np.random.default_rng(0)
    means, rows = TokenMeans(3, 20, CPU), []
    for _ in range(10):
        ids_T, h_TU = random.integers(0, 20, 30), random.normal(size=(30, 3)).astype(np.float32)
        means.add(torch.tensor(h_TU), torch.tensor(ids_T))
        rows += list(zip(ids_T.tolist(), h_TU.astype(np.float64), strict=True))
    top = means.top(4, sign)
    for unit in range(3):
        of_token = {token: [h[unit] for other, h in rows if other == token] for token in range(20)}
        expected = sorted(((sign * np.mean(of_token[token]), token) for token in of_token), reverse=True)[:4]
        assert top.ids_UN[unit].tolist() == [token for _, token in expected]
        assert top.mean_UN[unit].tolist() == pytest.approx([sign * mean for mean, _ in expected], rel=1e-12)
        assert top.count_UN[unit].tolist() == [len(of_token[token]) for _, token in expected]


def test_which_tokens_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM", 4)
    means = TokenMeans(1, 100, CPU)
    for ids in ([50, 60], [9, 30, 8, 50], [1, 2, 3]):
        means.add(torch.ones(5 * len(ids), 1), torch.tensor(ids * 5))
    assert sorted(means.top(9, 1).ids_UN[0].tolist()) == [8, 9, 50, 60]
