"""``monolora export`` as a whole, on a tiny model: what it writes, what it compares, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from monolora.data.chat_template import prompt_ids
from monolora.keep.anchors import read_prompts
from tests.support.merge_runs import Ended

RunCli = Callable[..., Ended]
FEW = ("--max-samples", "6", "--max-new-tokens", "5", "--prompts", "refusals")
UNVERIFIED = ("--verify-on", "demo", "--verify-tokens", "100", "--calibration", "none", "--task-samples", "0")


@pytest.fixture
def merged(trained: Callable[..., Path], run_cli: RunCli, tmp_path: Path) -> Path:
    """A linear merge of a tiny adapter, whatever it keeps of it."""
    out = tmp_path / "merged"
    assert run_cli("merge", trained(), out, *UNVERIFIED, "--min-fidelity", "-9", "--dtype", "float32").status == 0
    return out


@pytest.mark.filterwarnings("ignore:Without calibration text")
def test_a_merge(merged: Path, trained: Callable[..., Path], run_cli: RunCli, tmp_path: Path) -> None:
    """Its files are compared with the adapter: of float32 they are the checkpoint, which is not the adapter."""
    out = tmp_path / "gguf"
    ended = run_cli("export", merged, out, "--types", "f32", "q8_0", *FEW)
    assert ended.status == 0, ended.err
    assert {path.name for path in out.iterdir()} == {"model-f32.gguf", "model-q8_0.gguf", "Modelfile", "export.json"}
    assert (out / "Modelfile").read_text().startswith("FROM ./model-q8_0.gguf\nTEMPLATE ")
    record = json.loads((out / "export.json").read_text())
    assert record["reference"] == str(trained())
    files = record["files"]
    assert list(files) == ["the checkpoint", "model-f32.gguf", "model-q8_0.gguf"]
    whole, same, small = (files[name]["sets"]["refusals"] for name in files)
    assert same == whole
    assert whole["kl"]["mean"] > 0
    assert small["kl"]["mean"] != whole["kl"]["mean"]
    assert all(files[name]["same_tokens"] for name in list(files)[1:])
    assert f"Compared with {trained()}" in ended.out
    assert f"Next: ollama create gguf -f {out}/Modelfile" in ended.out


def test_any_model(chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase, run_cli: RunCli, tmp_path: Path) -> None:
    """It is its own reference; answers by transformers from the written file say how many are the same."""
    out = tmp_path / "gguf"
    ended = run_cli("export", chat_model, out, "--types", "q8_0", *FEW)
    assert ended.status == 0, ended.err
    found = json.loads((out / "export.json").read_text())["files"]["model-q8_0.gguf"]["sets"]["refusals"]
    written: Any = AutoModelForCausalLM.from_pretrained(out, gguf_file="model-q8_0.gguf", dtype=torch.float32)
    source: Any = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    same = []
    for example in read_prompts(["refusals"], 6, from_evaluation=True).examples:
        ids = torch.tensor([prompt_ids(example, chat_tokenizer)])
        options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": 2}
        same.append(torch.equal(source.generate(ids, **options), written.generate(ids, **options)))
    assert found["identical"]["mean"] == pytest.approx(sum(same) / len(same))
    assert "--overwrite" in run_cli("export", chat_model, out, *FEW).err[-1]
    assert run_cli("export", chat_model, out, "--types", "f16", *FEW, "--overwrite").status == 0
    assert not (out / "model-q8_0.gguf").exists()
    tokenizer: Any = AutoTokenizer.from_pretrained(out, gguf_file="model-f16.gguf")
    assert tokenizer.chat_template == chat_tokenizer.chat_template


def test_what_cannot_be_exported(
    chat_model: Path, trained: Callable[..., Path], run_cli: RunCli, tmp_path: Path
) -> None:
    exact, out = tmp_path / "exact", tmp_path / "gguf"
    flags = ("--method", "exact", "--dtype", "float32", "--verify-on", "demo", "--verify-tokens", "100")
    assert run_cli("merge", trained(), exact, *flags, "--task-samples", "0").status == 0
    for words, said in {
        (trained(), out): f"is an adapter. Merge it first: monolora merge {trained()}",
        (exact, out): "keeps the activation",
        (chat_model, out, "--types", "q4_k_m"): "q4_k_m",
        (chat_model, out, "--prompts", "nothing"): "nothing",
        (tmp_path / "missing", out): "missing",
    }.items():
        ended = run_cli("export", *words)
        assert ended.status == 2, words
        assert said in ended.err[-1]
    assert not out.exists()
