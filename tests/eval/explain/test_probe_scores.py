"""Probing and perturbation against scikit-learn, on readings made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from monolora.eval.explain.probe_scores import Reading, perturbation_scores, probe_scores, unit_probes
from monolora.eval.explain.score_report import score_tables
from monolora.eval.explain.unit_reader import SHARES, Sample
from monolora.explain.probing import training_half


def reading(name: str = "made", labels: tuple[str, ...] = ("no", "yes"), texts: int = 80, seed: int = 0) -> Reading:
    """Texts of which unit 2 knows the last label well, and unit 5 a little; random units know nothing."""
    rng = np.random.default_rng(seed)
    group = np.arange(texts) % len(labels)
    is_last = group == len(labels) - 1
    own = np.abs(rng.normal(size=(len(SHARES), texts, 9)))
    own[:, :, 2] += 4 * is_last
    own[:, :, 5] += 1 * is_last
    return Reading(
        name=name,
        labels=labels,
        group_N=group,
        is_training_N=training_half(group),
        own_SNU=own,
        random_DSNU=np.abs(rng.normal(size=(2, len(SHARES), texts, 9))),
        sample=Sample(*([torch.empty(0)] * 3), []),
    )


def test_few_units_that_know_a_label_are_told_from_random_ones() -> None:
    scores = {(score.units, score.share): score for score in probe_scores([reading()])}
    assert set(scores) == {(units, share) for units in (1, 2, 5, None) for share in SHARES}
    best = scores[1, 1.0]
    assert (best.kind, best.dataset, best.of, best.texts) == ("probe", "made", "yes", 40)
    assert best.own.mean > 95
    assert best.random.mean == pytest.approx(50, abs=15)
    assert best.difference.mean == pytest.approx(best.own.mean - best.random.mean)
    assert best.difference.low > 0
    assert best.difference.p < 0.01


def test_the_probe_on_all_units_is_scikit_learns() -> None:
    made = reading()
    score = next(score for score in probe_scores([made]) if score.units is None and score.share == 1)
    x, y, train = made.own_SNU[0], made.group_N == 1, made.is_training_N
    z = (x - x[train].mean(0)) / x[train].std(0)
    model = LogisticRegression(C=1 / 9, class_weight="balanced").fit(z[train], y[train])
    expected = 100 * balanced_accuracy_score(y[~train], model.predict(z[~train]))
    assert score.own.mean == pytest.approx(expected)


def test_each_of_several_labels_is_told_from_the_rest() -> None:
    made = reading(labels=("a", "b", "c"))
    assert [label for label, _ in made.concepts()] == ["a", "b", "c"]
    best = {score.of: score.own.mean for score in probe_scores([made]) if score.units == 1 and score.share == 1}
    assert best["c"] > 90
    assert best["c"] > max(best["a"], best["b"])
    probes = unit_probes(made)
    assert probes.label[2] == "c"
    assert probes.accuracy[2] == pytest.approx(best["c"] / 100)


def test_a_label_of_few_texts_is_left_out() -> None:
    made = reading(labels=("a", "b", "c"), texts=24)
    made.group_N[:20] = 0
    assert [label for label, _ in made.concepts()] == []


def test_a_table_has_a_line_for_each_number_of_units() -> None:
    (table,) = score_tables(probe_scores([reading()]))
    assert table.title == "Sparse probing: made, yes, %, 40 texts"
    assert table.heads == ["as trained", "on ≤ 30 %", "on ≤ 10 %", "on ≤ 3 %", "on ≤ 1 %"]
    assert [units for units, _ in table.lines] == ["1 unit", "2 units", "5 units", "all"]
    assert table.lines[0][1][0].differs


def test_units_of_one_label_leave_the_probe_of_another_alone() -> None:
    """Two sets; in the second, unit 7 knows the label."""
    first, second = reading("first"), reading("second", seed=1)
    second.own_SNU[:, :, [2, 5]] = second.random_DSNU[0][:, :, [2, 5]]
    second.own_SNU[:, :, 7] += 4 * (second.group_N == 1)
    scores = {(score.units, score.share): score for score in perturbation_scores([first, second])}
    score = scores[1, 1.0]
    assert (score.kind, score.dataset, score.of, score.texts) == ("targeted", "first, second", "2 labels", 80)
    falls = []
    for probed, own in ((first, 2), (second, 7)):
        x, y, train = probed.own_SNU[0], probed.group_N == 1, probed.is_training_N
        mean, std = x[train].mean(0), x[train].std(0)
        model = LogisticRegression(C=1 / 9, class_weight="balanced").fit((x[train] - mean) / std, y[train])

        before, *after = (
            balanced_accuracy_score(y[~train], model.predict(((x * kept - mean) / std)[~train]))
            for kept in (np.ones(9), np.arange(9) != own, np.arange(9) != 9 - own)
        )
        falls += [100 * (before - accuracy) for accuracy in after]
    assert score.own.mean == pytest.approx((falls[0] + falls[2]) / 2 - (falls[1] + falls[3]) / 2)
    assert score.own.low > 10
    assert abs(score.random.mean) < 15
    assert perturbation_scores([first]) == []
