"""The comparison of two groups against scipy, given every text as the number of its bin."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import ndtr
from scipy.stats import mannwhitneyu

from monolora.explain import histograms as module
from monolora.explain.histograms import contrast


def _by_scipy(a_E: np.ndarray, b_E: np.ndarray) -> tuple[float, float]:
    """AUC and p-value of one unit."""
    bins = np.arange(len(a_E))
    a, b = np.repeat(bins, a_E), np.repeat(bins, b_E)
    result = mannwhitneyu(a, b, method="asymptotic")
    return result.statistic / (len(a) * len(b)), result.pvalue


def _agrees(a_UE: np.ndarray, b_UE: np.ndarray) -> None:
    found = contrast(a_UE, b_UE)
    for unit, (a_E, b_E) in enumerate(zip(a_UE, b_UE, strict=True)):
        auc, p = _by_scipy(a_E, b_E)
        assert found.auc_U[unit] == pytest.approx(auc, abs=1e-12)
        assert found.p_U[unit] == pytest.approx(p, rel=1e-9, abs=1e-12)


def _counts(units: int, bins: int, most: int) -> st.SearchStrategy[np.ndarray]:
    counts = arrays(np.int64, (units, bins), elements=st.integers(0, most))
    return counts.filter(lambda drawn: bool(drawn.sum(1).all()))


@settings(deadline=None, max_examples=200)
@given(_counts(2, 6, 4), _counts(2, 6, 4))
def test_equals_scipy(a_UE: np.ndarray, b_UE: np.ndarray) -> None:
    _agrees(a_UE, b_UE)


def test_equals_scipy_with_many_texts_and_over_many_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_A_TIME", 7)
    rng = np.random.default_rng(0)
    share_UE = rng.dirichlet(np.full(200, 0.1), size=20)  # few bins hold most of the texts
    share_UE[:, 0] += rng.random(20)
    share_UE /= share_UE.sum(1, keepdims=True)
    _agrees(rng.multinomial(3000, share_UE), rng.multinomial(200, share_UE[::-1]))


def _by_whole_numbers(a: list[int], b: list[int]) -> tuple[float, float]:
    """AUC and p-value of one unit; what rounds, rounds in the end."""
    n_a, n_b, n = sum(a), sum(b), sum(a) + sum(b)
    wins = sum(a_e * (sum(b[:e]) + Fraction(b[e], 2)) for e, a_e in enumerate(a))
    ties = sum((a_e + b_e) ** 3 - (a_e + b_e) for a_e, b_e in zip(a, b, strict=True))
    variance = Fraction(n_a * n_b * (n**3 - n - ties), 12 * n * (n - 1))
    z = float(abs(wins - Fraction(n_a * n_b, 2)) - Fraction(1, 2)) / float(variance) ** 0.5
    return float(wins / (n_a * n_b)), float(min(2 * ndtr(-z), 1))


@pytest.mark.parametrize("texts", [50, 2_000_000, 1_500_000_000])
def test_equals_whole_numbers_however_many_texts_there_are(texts: int) -> None:
    rng = np.random.default_rng(1)
    share_UE = rng.dirichlet(np.full(30, 0.3), size=8)
    share_UE[0] = np.eye(30)[4]
    a_UE, b_UE = rng.multinomial(texts, share_UE), rng.multinomial(texts // 3, share_UE)
    b_UE[0, 5] += 1  # but for one, all are tied
    found = contrast(a_UE, b_UE)
    for unit, (a_E, b_E) in enumerate(zip(a_UE.tolist(), b_UE.tolist(), strict=True)):
        auc, p = _by_whole_numbers(a_E, b_E)
        assert found.auc_U[unit] == pytest.approx(auc, rel=1e-12)
        assert found.p_U[unit] == pytest.approx(p, rel=1e-9)
    assert len(set(found.p_U.tolist())) > 5


def test_texts_that_are_all_tied_do_not_differ() -> None:
    for texts in (1, 3, 1000, 999_999, 2_000_000_000):
        found = contrast(np.array([[0, texts, 0]]), np.array([[0, texts, 0]]))
        assert [each.tolist() for each in found] == [[0.5], [1.0]]


def test_groups_that_are_apart() -> None:
    a_UE, b_UE = np.array([[0, 0, 30], [30, 0, 0]]), np.array([[20, 5, 0], [0, 5, 20]])
    found = contrast(a_UE, b_UE)
    assert found.auc_U.tolist() == [1.0, 0.0]
    assert (found.p_U < 1e-9).all()


def test_a_group_without_texts_says_nothing() -> None:
    found = contrast(np.array([[0, 0], [3, 1]]), np.array([[2, 1], [2, 2]]))
    assert np.isnan([each[0] for each in found]).all()
    assert not np.isnan([each[1] for each in found]).any()
    assert [each.shape for each in contrast(np.empty((0, 5), np.int64), np.empty((0, 5), np.int64))] == [(0,)] * 2
