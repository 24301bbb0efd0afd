"""The scores on a tiny adapter whose units know a label, and on readings made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from monolora import cli
from monolora.eval.explain.score_report import score_tables
from monolora.eval.explain.scores import (
    Faithfulness,
    Reading,
    correlations,
    perturbation_scores,
    probe_scores,
    unit_probes,
)
from monolora.eval.explain.unit_reader import SHARES, Sample
from monolora.explain.probing import training_half
from monolora.stats import resampled_means
from tests.support.evaluated import Evaluated


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


@pytest.fixture(scope="module")
def scored(evaluated: Evaluated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scored") / "out"
    words = [
        "--dataset",
        "demo",
        "--keep-prompts",
        "refusals",
        "--max-texts",
        "32",
        "--ablate",
        "3",
        "--safety-prompts",
        "0",
        "--logit-contexts",
        "0",
        "--dtype",
        "float32",
    ]
    assert cli.main(["explain", str(evaluated.mono), *words, "--score", "--dashboards", "--out", str(out)]) == 0
    return out


def test_scores_are_in_the_record_the_table_and_the_page(scored: Path) -> None:
    scores = json.loads((scored / "run.json").read_text())["scores"]
    assert {score["kind"] for score in scores} == {"probe", "correlation", "explained", "ranking"}
    assert {score["dataset"] for score in scores if score["kind"] == "correlation"} == {"demo", "kept"}
    assert len([score for score in scores if score["kind"] == "probe"]) == 4 * len(SHARES)
    frame = pd.read_parquet(scored / "features.parquet")
    assert frame["demo.probe"].between(0, 1).all()
    assert set(frame["demo.probe_label"]) == {scores[0]["of"]}
    assert frame.attrs["monolora"]["scores"] == scores
    assert len(list(scored.glob("dashboards/*/batch-0.json"))) == frame["module"].nunique()
    page = (scored / "explorer.html").read_text()
    assert "Sparse probing: demo" in page
    assert frame["demo.faithfulness"].notna().sum() <= 3
    assert frame["kept.firing_rate"].between(0, 1).all()
    assert "prompts, of refusals" in frame.attrs["monolora"]["datasets"]["kept"]["note"].lower()


def test_scores_need_labels(evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert (
        cli.main(["explain", str(evaluated.mono), "--dataset", str(evaluated.prompts), "--score", "--out", str(out)])
        == 2
    )
    assert "--score needs a data set with labels" in capsys.readouterr().err
    assert not out.exists()


def test_correlations_are_scipys_on_the_prompts_and_on_resamples() -> None:
    rng = np.random.default_rng(0)
    x, y = 1e3 + rng.lognormal(size=(3, 20)), rng.lognormal(size=(3, 20))
    y[1] += 3 * x[1]
    x[2] = 5.0
    found = correlations(x, y, resamples=50, seed=3)
    assert found.shape == (3, 51)
    assert found[:2, 0] == pytest.approx([pearsonr(*rows).statistic for rows in zip(x[:2], y[:2], strict=True)])
    assert np.isnan(found[2]).all()
    counts = resampled_means(np.eye(20), np.ones(20), 50, 3) * 20
    drawn = np.repeat(np.arange(20), counts[:, 7].round().astype(int))
    assert found[0, 8] == pytest.approx(pearsonr(x[0, drawn], y[0, drawn]).statistic)


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


def faithfulness(units: int = 6, prompts: int = 60) -> Faithfulness:
    """Units of which the even ones were ablated, with an effect that goes with their own activations."""
    rng = np.random.default_rng(1)
    own = np.repeat(rng.lognormal(size=(1, prompts, units)), len(SHARES), axis=0)
    effect = np.array([6.0, 0, 4, 0, 2, 0])
    kl = (own[0][:, ::2].T * effect[::2, None] + rng.normal(scale=0.3, size=(3, prompts))) ** 2 / 100
    random = rng.lognormal(size=(2, len(SHARES), prompts, units))
    return Faithfulness.of("made", [0, 2, 4], np.concatenate([own[None], random]), effect, kl)


def test_activations_that_predict_the_effects_of_ablations_are_faithful() -> None:
    found = faithfulness()
    scores = {(score.kind, score.share): score for score in found.scores}
    assert len(scores) == 2 * len(SHARES) + 1
    r, explained = scores["correlation", 1.0], scores["explained", 1.0]
    assert (r.units, r.texts, r.of) == (3, 60, "KL of the next token")
    assert r.own.low < r.own.mean < r.own.high
    assert r.own.mean > 0.9
    assert r.random.mean == pytest.approx(0, abs=0.2)
    assert r.difference.p < 0.01
    assert explained.own.mean == pytest.approx(np.nanmean(found.correlation_U**2))
    assert scores["ranking", 1.0].own.mean == 1
    assert scores["ranking", 1.0].random is None
    assert np.isnan(found.correlation_U).tolist() == [False, True] * 3
    assert [len(table.lines) for table in score_tables(found.scores)] == [1, 1, 1]


def test_units_that_are_silent_on_the_prompts_have_no_faithfulness() -> None:
    x = np.zeros((3, len(SHARES), 10, 2))
    found = Faithfulness.of("made", [0, 1], x, np.zeros(2), np.zeros((2, 10)))
    assert [score.own for score in found.scores] == [None] * len(found.scores)
    (first, *_) = score_tables(found.scores)
    assert first.lines[0][1][0].value == "–"
