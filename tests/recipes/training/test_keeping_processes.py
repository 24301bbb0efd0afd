"""Keepers in two data-parallel processes: the same weights as in one. Sharded ones: ``test_sharded.py``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import forks
from tests.support.program_runs import QUICK

pytestmark = pytest.mark.slow
SFT = "import sys; from monolora.recipes.sft import main; sys.exit(main())"
CPU = ["--config_file", forks.REPOSITORY / "recipes/accelerate/ddp-cpu.yaml"]


def test_two_processes_equal_one(
    run_sft: Callable[..., Any], chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence, KL and replay together; the anchors of a step are shared out, and their losses are those of one."""
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MONOLORA_DATA", raising=False)
    flags = ["--keep", "silence:0.5", "kl", "replay:0.2", "--keep-samples", "20", "--keep-answer-tokens", "4"]
    flags += ["--optim", "sgd", "--learning-rate", "0.5", "--train-sampling-strategy", "sequential"]
    where = ["--model", chat_model, "--output-dir", tmp_path / "two"]
    for ended in forks.launch(CPU, SFT, *where, *QUICK, *flags, "--per-device-train-batch-size", "2"):
        assert ended.returncode == 0, ended.stderr[-3000:]
    one = run_sft(*flags, name="one")
    assert one.status == 0, one.err
    weights, parallel = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    for name, tensor in weights.items():
        torch.testing.assert_close(parallel[name], tensor, rtol=1e-3, atol=1e-4)
    two = json.loads((tmp_path / "two" / "run.json").read_text())
    assert two["rows"]["replayed"] == one.record["rows"]["replayed"] == 4
    for name in ("keep_silence", "keep_kl", "loss"):
        values = [[entry[name] for entry in record["history"] if name in entry] for record in (two, one.record)]
        assert len(values[0]) == 5
        assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-4)
    kept = [record["results"]["keeping"]["sets"]["held-out anchors"] for record in (two, one.record)]
    assert kept[0]["tokens"] == kept[1]["tokens"]
    assert kept[0]["kl"]["mean"] == pytest.approx(kept[1]["kl"]["mean"], rel=1e-2, abs=1e-6)
