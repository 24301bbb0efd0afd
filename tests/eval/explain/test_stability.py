"""Units that come back in another adapter, in another order and scale, are found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from monolora import cli
from monolora.eval.explain.score_report import score_tables
from monolora.eval.explain.stability import Activations, load_samples, save_samples, stability
from monolora.eval.explain.unit_reader import SHARES, Sample
from tests.support.evaluated import Evaluated

MODULES = ["model.layers.0.q_proj", "model.layers.1.q_proj"]
UNITS = pd.DataFrame({"module": np.repeat(MODULES, 3), "index": [0, 1, 2] * 2})


def _sample(seed: int = 0, tokens: int = 300) -> Sample:
    rng = np.random.default_rng(seed)
    own, random = (torch.tensor(rng.normal(size=(tokens, 6)), dtype=torch.float32) for _ in range(2))
    return Sample(torch.arange(tokens), torch.arange(tokens) // 10, own.clamp(min=0), [random - 0.2])


def _saved(path: Path, sample: Sample) -> Activations:
    save_samples(path, {"a set": sample}, signed=False)
    return load_samples(path)["a set"]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    sample = _sample()
    found = _saved(tmp_path / "activations.safetensors", sample)
    assert np.corrcoef(found.own_TU[:, 2], sample.own_TU[:, 2])[0, 1] == pytest.approx(1)
    assert (found.own_TU == 0).tolist() == (sample.own_TU == 0).tolist()
    fired = (sample.own_TU != 0).float().mean(0)
    assert (found.random_TU != 0).float().mean(0).tolist() == pytest.approx(fired.tolist(), abs=0.01)
    assert not found.signed
    assert load_samples(tmp_path / "none") == {}


def test_units_in_another_order_and_scale_are_matched_within_their_module(tmp_path: Path) -> None:
    sample = _sample()
    order = [1, 2, 0, 3, 5, 4]
    noise = torch.tensor(np.random.default_rng(9).normal(scale=0.1, size=(300, 6)), dtype=torch.float32)
    other = sample._replace(own_TU=7 * (sample.own_TU[:, order] + noise).clamp(min=0))
    pair = (_saved(tmp_path / "first", sample), _saved(tmp_path / "second", other))
    found = stability("a set", ("one", "two"), (UNITS, UNITS), pair)
    assert found is not None
    assert len(found.scores) == len(SHARES)
    trained = found.scores[0]
    assert trained.own.low < trained.own.mean < trained.own.high
    assert trained.own.mean == pytest.approx(np.mean([match.correlation for match in found.matches]))
    assert trained.own.mean > 0.95
    assert trained.random.mean < 0.2
    assert trained.difference.p < 0.01
    expected = {(f"{MODULES[k // 3]}:{order[k] % 3}", f"{MODULES[k // 3]}:{k % 3}") for k in range(6)}
    assert {(match.first, match.second) for match in found.matches} == expected
    (table,) = score_tables(found.scores)
    assert table.title == "Stability: a set, one and two, |r|, 30 texts"


def test_other_tokens_are_not_compared(tmp_path: Path) -> None:
    first, second = _saved(tmp_path / "first", _sample()), _saved(tmp_path / "second", _sample(tokens=290))
    assert stability("a set", ("one", "two"), (UNITS, UNITS), (first, second)) is None


def test_a_comparison_has_scores_and_stability(
    evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compared"
    words = ["--dataset", "demo", "--max-texts", "32", "--ablate", "0", "--logit-contexts", "0", "--dtype", "float32"]
    compared = ["--compare", f"lora={evaluated.lora}", f"mono={evaluated.mono}"]
    assert cli.main(["explain", *compared, *words, "--score", "--out", str(out)]) == 0
    assert "Stability: demo, lora and mono" in capsys.readouterr().out
    record = json.loads((out / "comparison.json").read_text())
    assert {name: len(scores) for name, scores in record["scores"].items()} == {"lora": 4 * 5, "mono": 4 * 5}
    (found,) = record["stability"]
    assert [score["share"] for score in found["scores"]] == list(SHARES)
    assert 0 < len(found["matches"]) <= 16
    page = (out / "comparison.html").read_text()
    assert "Sparse probing: demo" in page
    assert "1 unit, lora" in page
    again = ["--compare", f"lora={out / 'lora'}", f"mono={out / 'mono'}", "--out", str(tmp_path / "again")]
    assert cli.main(["explain", *again]) == 0
    assert json.loads((tmp_path / "again" / "comparison.json").read_text())["stability"] == record["stability"]
