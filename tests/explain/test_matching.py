"""Matching against all permutations, and correlations on resamples against scipy's."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import pearsonr

from monolora.explain.matching import matched, resampled_correlations
from monolora.stats import resampled_means


def test_the_matching_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(200, 4))
    second = first[:, [2, 0, 3, 1]] * [-1, 2, 1, 9] + rng.normal(size=(200, 4))
    found = matched(first, second)
    r = np.abs(np.corrcoef(first.T, second.T)[:4, 4:])
    best = max(permutations(range(4)), key=lambda order: sum(r[range(4), order]))
    assert found.second_K.tolist() == list(best) == [1, 3, 0, 2]
    assert found.correlation_K == pytest.approx(r[range(4), best])


def test_constant_units_are_left_out() -> None:
    rng = np.random.default_rng(0)
    first, second = np.abs(rng.normal(size=(50, 3))), np.abs(rng.normal(size=(50, 2)))
    first[:, 1] = 0
    found = matched(first, second)
    assert set(found.first_K) == {0, 2}
    assert matched(np.zeros((50, 3)), second).correlation_K.tolist() == []


def test_texts_are_resampled_whole() -> None:
    rng = np.random.default_rng(0)
    text = np.repeat(np.arange(8), [3, 9, 5, 7, 4, 6, 8, 2])
    first = rng.normal(size=(len(text), 2))
    second = first + rng.normal(size=first.shape)
    found = resampled_correlations(first, -second, text, resamples=20, seed=5)
    counts = resampled_means(np.eye(8), np.ones(8), 20, 5)[:, 6] * 8
    tokens = np.concatenate([np.flatnonzero(text == n) for n in np.repeat(np.arange(8), counts.round().astype(int))])
    for pair in range(2):
        assert found[pair, 6] == pytest.approx(pearsonr(first[tokens, pair], second[tokens, pair]).statistic)
