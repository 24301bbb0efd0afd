"""The scores on a tiny adapter whose units know a label, and on readings made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from monolora import cli
from monolora.eval.explain.score_report import score_tables
from monolora.eval.explain.scores import SHARES, Reading, probe_scores, unit_probes
from monolora.explain.probing import training_half
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
        "0",
        "--logit-contexts",
        "0",
        "--dtype",
        "float32",
    ]
    assert cli.main(["explain", str(evaluated.mono), *words, "--score", "--out", str(out)]) == 0
    return out


def test_scores_are_in_the_record_the_table_and_the_page(scored: Path) -> None:
    scores = json.loads((scored / "run.json").read_text())["scores"]
    assert {score["kind"] for score in scores} == {"probe"}
    assert len([score for score in scores if score["kind"] == "probe"]) == 4 * len(SHARES)
    frame = pd.read_parquet(scored / "features.parquet")
    assert frame["demo.probe"].between(0, 1).all()
    assert set(frame["demo.probe_label"]) == {scores[0]["of"]}
    assert frame.attrs["monolora"]["scores"] == scores
    page = (scored / "explorer.html").read_text()
    assert "Sparse probing: demo" in page
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
