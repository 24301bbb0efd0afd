"""Probes against scikit-learn, brute force, and activations whose concept is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from monolora.explain.probing import (
    Probe,
    class_weights,
    mean_differences,
    single_unit_logits,
    standardised,
    training_half,
)


def _texts(seed: int = 0, texts: int = 90, units: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations of which unit 4 knows the concept, at a scale of its own; a third of the texts has it."""
    rng = np.random.default_rng(seed)
    is_positive = np.arange(texts) % 3 == 0
    x = np.maximum(rng.normal(size=(texts, units)), 0) * rng.lognormal(0, 3, units)
    x[:, 4] = 1e-3 * np.maximum(rng.normal(size=texts) + 3 * is_positive, 0)
    x[:, 7] = 5.0
    return x, is_positive, training_half(is_positive)


def test_a_half_has_half_of_each_group() -> None:
    groups = np.array([0] * 11 + [1] * 6 + [2])
    is_training = training_half(groups)
    assert [int(is_training[groups == group].sum()) for group in range(3)] == [6, 3, 1]
    assert (training_half(groups) == is_training).all()
    assert (training_half(groups, seed=1) != is_training).any()


def test_the_classes_weigh_the_same() -> None:
    is_positive = np.array([True] * 3 + [False] * 9)
    weights = class_weights(is_positive)
    assert weights[is_positive].sum() == pytest.approx(0.5)
    assert weights.sum() == pytest.approx(1)
    guess = np.random.default_rng(0).random(12) < 0.5
    assert ((guess == is_positive) * weights).sum() == pytest.approx(balanced_accuracy_score(is_positive, guess))


def test_a_unit_is_selected_by_what_it_knows_and_not_by_its_scale() -> None:
    x, is_positive, is_training = _texts()
    z = standardised(x, is_training)
    assert z[is_training].mean(0) == pytest.approx(0, abs=1e-9)
    assert z[is_training].std(0) == pytest.approx((np.arange(12) != 7).astype(float))
    difference = mean_differences(z, is_positive, is_training)
    assert np.abs(difference).argmax() == 4
    assert difference[7] == 0
    rescaled = mean_differences(standardised(x * np.arange(1, 13), is_training), is_positive, is_training)
    assert rescaled == pytest.approx(difference)


def test_a_probe_learns_from_the_training_half_alone() -> None:
    x, is_positive, is_training = _texts()
    z = standardised(x, is_training)
    probe = Probe(z[:, [4]], is_positive, is_training)
    assert probe.is_right(z[:, [4]], is_positive)[~is_training].mean() > 0.8
    damaged = z.copy()
    damaged[~is_training] = 1e6
    again = Probe(damaged[:, [4]], is_positive, is_training)
    assert (again.weight_K, again.bias) == (probe.weight_K, probe.bias)


def test_single_units_are_fitted_as_by_scikit_learn() -> None:
    x, is_positive, is_training = _texts(texts=61)
    z = standardised(x, is_training)
    logits = single_unit_logits(z, is_positive, is_training)
    for unit in range(12):
        model = LogisticRegression(class_weight="balanced", tol=1e-10, max_iter=10_000)
        model.fit(z[is_training][:, [unit]], is_positive[is_training])
        assert logits[:, unit] == pytest.approx(model.decision_function(z[:, [unit]]), abs=1e-5)


def test_a_concept_that_no_unit_knows_is_told_by_chance() -> None:
    rights = []
    for seed in range(20):
        x, is_positive, _ = _texts(seed)
        is_positive = np.random.default_rng(100 + seed).permutation(is_positive)
        is_training = training_half(is_positive)
        z = standardised(x, is_training)
        best = np.argsort(-np.abs(mean_differences(z, is_positive, is_training)))[:2]
        right = Probe(z[:, best], is_positive, is_training).is_right(z[:, best], is_positive)[~is_training]
        rights.append((right * class_weights(is_positive[~is_training])).sum())
    assert np.mean(rights) == pytest.approx(0.5, abs=0.05)
