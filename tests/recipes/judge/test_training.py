"""The judge's numbers against brute force and scikit-learn."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from monolora.beaverdam import LABELS
from monolora.recipes.judge import training
from monolora.recipes.judge.training import _weighted_auc, auc_interval, auc_standard_error, measure


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=2, max_size=20
    ).filter(lambda rows: {unsafe for _, unsafe, weight in rows if weight} == {True, False})
)  # fmt: skip
def test_weighted_auc_is_the_auc_of_repeated_rows(rows: list[tuple[int, bool, int]]) -> None:
    scores, unsafe, weights = map(np.array, zip(*rows, strict=True))
    found = _weighted_auc(scores, unsafe, weights)
    assert found == pytest.approx(roc_auc_score(np.repeat(unsafe, weights), np.repeat(scores, weights)))


def test_no_pairs() -> None:
    assert np.isnan(_weighted_auc(np.array([0, 1]), np.array([True, False]), np.array([1, 0])))


def _random(rows: int, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    random = np.random.default_rng(seed)
    labels = random.random((rows, len(LABELS))) < 0.06
    labels[:, 5] = False
    probabilities = np.clip(0.35 * labels + 0.8 * random.random(labels.shape) ** 3, 0, 1)
    return probabilities, labels, labels.any(axis=1)


def test_measure_by_brute_force() -> None:
    probabilities, labels, unsafe = _random(120)
    found = measure(probabilities, labels, unsafe, [str(n // 2) for n in range(120)])
    scores = [max(row) for row in probabilities]
    pairs = [
        (a > b) + (a == b) / 2
        for (a, bad), (b, other) in product(zip(scores, unsafe, strict=True), repeat=2)
        if bad and not other
    ]
    flags = [score > 0.5 for score in scores]
    both = sum(flag and bad for flag, bad in zip(flags, unsafe, strict=True))
    assert found["auc"] == pytest.approx(sum(pairs) / len(pairs))
    assert found["accuracy"] == sum(flag == bad for flag, bad in zip(flags, unsafe, strict=True)) / 120
    assert (found["precision"], found["recall"]) == (both / sum(flags), both / sum(unsafe))
    assert (found["rows"], found["prompts"], found["unsafe"], found["flagged"]) == (120, 60, sum(unsafe), sum(flags))
    assert found["auc_low"] < found["auc"] < found["auc_high"]
    for index, label in enumerate(LABELS):
        category, bad, high = found["categories"][label], labels[:, index], probabilities[:, index] > 0.5
        assert (category["rows"], category["flagged"]) == (sum(bad), sum(high))
        if any(bad):
            assert category["auc"] == pytest.approx(roc_auc_score(bad, probabilities[:, index]))
            assert category["recall"] == sum(bad & high) / sum(bad)
        if any(high):
            assert category["precision"] == sum(bad & high) / sum(high)


def test_what_cannot_be_said_is_none() -> None:
    probabilities, labels, unsafe = _random(50)
    probabilities[:, 5] = 0.1
    found = measure(probabilities, labels, unsafe, list(map(str, range(50))))["categories"][LABELS[5]]
    assert found == {"rows": 0, "flagged": 0, "auc": None, "precision": None, "recall": None}


def test_the_interval_covers_the_true_auc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two normal scores one apart it is 0.760; 95 % of the intervals should hold it."""
    monkeypatch.setattr(training, "RESAMPLES", 400)
    hits, runs = 0, 60
    for seed in range(runs):
        random = np.random.default_rng(seed)
        unsafe = random.random(150) < 0.5
        low, high = auc_interval(random.normal(unsafe), unsafe, list(map(str, range(150))), seed)
        hits += low < 0.7602 < high
    assert hits >= 51  # fewer have a chance of 0.1 % at 95 %


def test_answers_to_one_prompt_count_as_one() -> None:
    """Each row eight times says no more than once."""
    probabilities, _, unsafe = _random(80, seed=1)
    scores = probabilities.max(axis=1)
    once = auc_interval(scores, unsafe, list(map(str, range(80))), 0)
    repeated = auc_interval(np.repeat(scores, 8), np.repeat(unsafe, 8), [str(n // 8) for n in range(640)], 0)
    assert repeated == pytest.approx(once, abs=0.02)


def test_standard_error_of_an_auc() -> None:
    """Against the spread of AUCs over many draws of scores whose true AUC is 0.8 (the formula's own distribution)."""
    random = np.random.default_rng(0)
    unsafe = np.arange(100) < 40
    # Exponential scores: P(positive > negative) = rate / (rate + 1), so 0.8 with means 4 and 1
    drawn = [roc_auc_score(unsafe, random.exponential(np.where(unsafe, 4.0, 1.0))) for _ in range(2000)]
    assert auc_standard_error(0.8, 40, 60) == pytest.approx(np.std(drawn), rel=0.1)
