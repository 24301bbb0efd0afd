"""What ``monolora explain`` cannot ablate, it says."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from monolora import cli
from tests.support.evaluated import Evaluated

QUICK = ("--dtype", "float32", "--max-texts", "24", "--ablate", "2", "--ablation-prompts", "6", "--batch-size", "8")


@pytest.mark.parametrize("kind", ["embedding", "dora"])
def test_units_that_cannot_be_taken_out_are_read_all_the_same(
    evaluated: Evaluated, fill: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    options = {"use_dora": True} if kind == "dora" else {}
    modules = ["q_proj", "embed_tokens"] if kind == "embedding" else ["q_proj"]
    config = LoraConfig(r=2, target_modules=modules, task_type="CAUSAL_LM", **options)
    adapted = get_peft_model(LlamaForCausalLM.from_pretrained(evaluated.base), config)
    fill(adapted)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
        adapted.save_pretrained(tmp_path / "adapter")
    status = cli.main(["explain", str(tmp_path / "adapter"), *QUICK, "--out", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert status == 0
    assert "not ablated" in err
    units = pd.read_parquet(tmp_path / "out" / "features.parquet").set_index("unit")
    assert (units["demo.effect"] > 0).all()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["ablations"]["everything"] == []
    ablated = list(record["ablations"]["units"])
    assert (len(ablated) == 2 and not any("embed" in name for name in ablated)) if kind == "embedding" else not ablated
    fixed = next(name for name in units.index if ("embed" in name) == (kind == "embedding"))
    words = ["--ablate-units", fixed, "--out", str(tmp_path / "another")]
    assert cli.main(["explain", str(tmp_path / "adapter"), *QUICK, *words]) == 2
    assert f"{fixed} cannot be ablated" in capsys.readouterr().err


def test_what_is_not_ablated_is_said(evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dataset", "demo-last", *QUICK, "--out", str(tmp_path / "out")]
    assert cli.main(["explain", str(evaluated.mono), *words]) == 0
    assert "Nothing is ablated on demo-last" in capsys.readouterr().err
    units = pd.read_parquet(tmp_path / "out" / "features.parquet")
    assert not [column for column in units if column.startswith("ablation")]
