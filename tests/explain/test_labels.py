"""What units know of labels, against scipy, scikit-learn and counting by hand."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chi2_contingency
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import expected_mutual_information

from monolora.explain import labels
from monolora.explain.labels import coarsened, consistency_by_chance, mutual_information, semantic_consistency
from monolora.recipes.vision import consistency

COUNTS = arrays(np.int64, (2, 3, 14), elements=st.integers(0, 5))


def _merged(counts_GE: np.ndarray, bins: int = 10) -> np.ndarray:
    """Each text goes to the tenth in which the middle of its bin is; text by text."""
    merged_GK = np.zeros((len(counts_GE), bins), dtype=np.int64)
    texts, below = counts_GE.sum(), 0
    for e in range(counts_GE.shape[1]):
        own = counts_GE[:, e].sum()
        if own:
            merged_GK[:, int(bins * (2 * below + own) // (2 * texts))] += counts_GE[:, e]
        below += own
    return merged_GK


def _information(counts_GK: np.ndarray) -> float:
    """By scikit-learn, what it expects by chance taken off, in bits."""
    pairs = [(g, k) for (g, k), count in np.ndenumerate(counts_GK) for _ in range(count)]
    rows, columns = ([pair[side] for pair in pairs] for side in (0, 1))
    full = counts_GK[counts_GK.any(1)][:, counts_GK.any(0)]
    nats = mutual_info_score(rows, columns) - expected_mutual_information(full, int(full.sum()))
    return max(0.0, nats / np.log(2))


def _p(counts_GK: np.ndarray) -> float:
    full = counts_GK[counts_GK.any(1)][:, counts_GK.any(0)]
    return chi2_contingency(full, correction=False).pvalue


@settings(deadline=None)
@given(COUNTS)
def test_information_equals_that_of_scipy_and_scikit_learn(counts_UGE: np.ndarray) -> None:
    found = mutual_information(counts_UGE)
    for unit, counts_GE in enumerate(counts_UGE):
        if counts_GE.any():
            assert found.bits_U[unit] == pytest.approx(_information(_merged(counts_GE)), abs=1e-9)
            assert found.p_U[unit] == pytest.approx(_p(_merged(counts_GE)), rel=1e-9)
        else:
            assert np.isnan([found.bits_U[unit], found.p_U[unit]]).all()


def test_information_of_many_texts_and_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "_AT_A_TIME", 3)
    rng = np.random.default_rng(0)
    counts_UGE = rng.multinomial(400, rng.dirichlet(np.full(50, 0.2), size=(8, 5)))
    found = mutual_information(counts_UGE)
    for unit, counts_GE in enumerate(counts_UGE):
        assert found.bits_U[unit] == pytest.approx(_information(_merged(counts_GE)), abs=1e-9)
        assert found.p_U[unit] == pytest.approx(_p(_merged(counts_GE)), rel=1e-6)


@settings(deadline=None)
@given(COUNTS)
def test_bins_are_merged_in_their_order_and_no_text_is_lost(counts_UGE: np.ndarray) -> None:
    np.testing.assert_array_equal(coarsened(counts_UGE), [_merged(counts_GE) for counts_GE in counts_UGE])
    np.testing.assert_array_equal(coarsened(counts_UGE).sum(2), counts_UGE.sum(2))


def test_texts_without_ties_are_merged_into_tenths_and_ties_stay_together() -> None:
    untied = np.ones((1, 1, 200), dtype=np.int64)
    assert coarsened(untied).ravel().tolist() == [20.0] * 10
    sparse = np.concatenate([[70], np.ones(30, dtype=np.int64)])[None, None]
    assert coarsened(sparse).ravel().tolist() == [0, 0, 0, 70, 0, 0, 0, 10, 10, 10]


def test_a_unit_that_knows_the_label_and_one_that_does_not() -> None:
    knows = np.zeros((4, 8), dtype=np.int64)
    knows[range(4), range(0, 8, 2)] = 250  # four labels, each in a bin of its own
    found = mutual_information(np.stack([knows, np.full((4, 8), 125)]))
    assert found.bits_U[0] == pytest.approx(2, abs=0.02)
    assert found.p_U[0] < 1e-100
    assert found.bits_U[1] == 0
    assert found.p_U[1] == pytest.approx(1)


def test_what_chance_gives_is_taken_off_on_average() -> None:
    """Of units that know nothing of many labels with few texts each."""
    rng = np.random.default_rng(0)
    labels_N = rng.integers(14, size=160)
    counts_UGE = np.zeros((400, 14, 160), dtype=np.int64)
    for unit in range(400):
        counts_UGE[unit, labels_N, rng.permutation(160)] = 1
    found = mutual_information(counts_UGE)
    assert 0.01 < found.bits_U.mean() < 0.05  # of what is left, half is below 0 and cut off there
    assert 0.02 < (found.p_U < 0.05).mean() < 0.08


def test_nothing_to_test() -> None:
    one_label, tied = np.zeros((3, 5), dtype=np.int64), np.zeros((3, 5), dtype=np.int64)
    one_label[1] = 7
    tied[:, 2] = 7
    found = mutual_information(np.stack([one_label, tied]))
    assert found.bits_U.tolist() == [0.0, 0.0]
    assert found.p_U.tolist() == [1.0, 1.0]
    assert mutual_information(np.empty((0, 3, 5), dtype=np.int64)).bits_U.shape == (0,)


def test_semantic_consistency_is_that_of_the_vision_recipe() -> None:
    rng = np.random.default_rng(0)
    z_ND = rng.normal(size=(60, 8)) * (rng.random((60, 8)) < 0.3)
    z_ND[:, 3] = 0
    labels_N = rng.integers(4, size=60)
    counts_UG = np.array([np.bincount(labels_N[z_ND[:, unit] != 0], minlength=4) for unit in range(8)])
    found_U = semantic_consistency(counts_UG)
    expected_D = consistency.semantic_consistency(torch.tensor(z_ND), torch.tensor(labels_N), 4, 1e-5)
    np.testing.assert_allclose(found_U, expected_D, rtol=1e-6)
    assert np.isnan(found_U[3])


@pytest.mark.parametrize("texts", [(3, 4), (5,), (4, 0, 2, 3), (1, 1, 1, 1, 1)])
def test_chance_equals_that_over_all_draws(texts: tuple[int, ...]) -> None:
    all_texts = [label for label, count in enumerate(texts) for _ in range(count)]
    for drawn in range(1, len(all_texts) + 1):
        shares = [max(Counter(draw).values()) / drawn for draw in combinations(all_texts, drawn)]
        assert consistency_by_chance(np.array(texts), drawn) == pytest.approx(np.mean(shares), rel=1e-12)


def test_simulated_chance_is_near_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    texts_G = np.array([300, 200, 0, 100, 90])
    exact = [consistency_by_chance(texts_G, drawn) for drawn in (20, 200)]
    monkeypatch.setattr(labels, "EXACT_UP_TO", 0)
    simulated = [consistency_by_chance(texts_G, drawn) for drawn in (20, 200)]
    assert simulated == pytest.approx(exact, abs=1e-3)
    assert simulated != exact
    assert consistency_by_chance(texts_G, 200) == simulated[1]


@pytest.mark.parametrize("drawn", [0, 8])
def test_more_texts_than_there_are_cannot_be_drawn(drawn: int) -> None:
    with pytest.raises(ValueError, match="1 to 7 can be drawn"):
        consistency_by_chance(np.array([3, 4]), drawn)
