"""The scores of a tiny adapter from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from monolora import cli
from monolora.eval.explain.unit_reader import SHARES
from tests.support.evaluated import Evaluated


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
