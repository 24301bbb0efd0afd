"""``monolora export`` as a whole, on a tiny model: what it writes, what it compares, what it refuses."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from monolora.adapters import load_adapted
from monolora.data.chat_template import prompt_ids
from monolora.keep.anchors import read_prompts
from monolora.recipes import export
from tests.support.merge_runs import Ended, contents
from tests.support.sentencepiece_tokenizers import sentencepiece_tokenizer
from tests.support.tiny_families import save_tiny_family

RunCli = Callable[..., Ended]
FEW = ("--max-samples", "6", "--max-new-tokens", "5", "--prompts", "refusals")
UNVERIFIED = ("--verify-on", "demo", "--verify-tokens", "100", "--calibration", "none", "--task-samples", "0")


@pytest.fixture
def merged(trained: Callable[..., Path], run_cli: RunCli, tmp_path: Path) -> Path:
    """A linear merge of a tiny adapter, whatever it keeps of it."""
    out = tmp_path / "merged"
    assert run_cli("merge", trained(), out, *UNVERIFIED, "--min-fidelity", "-9", "--dtype", "float32").status == 0
    return out


@torch.no_grad()
def drift(reference: Any, model: Any, tokenizer: PreTrainedTokenizerBase) -> float:
    """KL(reference ‖ model) of the next token along the reference's answers, the mean over prompts."""
    found = []
    for example in read_prompts(["refusals"], 6, from_evaluation=True).examples:
        ids = torch.tensor([prompt_ids(example, tokenizer)])
        answered = reference.generate(input_ids=ids, max_new_tokens=5, do_sample=False, eos_token_id=2)
        one, other = (
            of(input_ids=answered).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1) for of in (reference, model)
        )
        found.append(float(F.kl_div(other, one, reduction="batchmean", log_target=True)))
    return sum(found) / len(found)


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
    adapter, tokenizer = load_adapted(str(trained()), dtype=torch.float32)
    dense: Any = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert whole["kl"]["mean"] == pytest.approx(drift(adapter, dense, tokenizer), rel=1e-3)
    assert whole["kl"]["mean"] != pytest.approx(drift(dense, adapter, tokenizer), rel=1e-3)
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
        (trained(), out, "--as", "lora"): f"keeps the activation relu, .* --as lora; then export {trained()}-lora",
        (chat_model, out, "--as", "lora"): "is no adapter. To export a checkpoint leave --as lora out",
        (save_tiny_family(tmp_path / "gpt2", "gpt2"), out): "models of type gpt2 are not exported; llama, mistral, ",
    }.items():
        ended = run_cli("export", *words)
        assert ended.status == 2, words
        assert re.search(said, ended.err[-1]), ended.err
        assert len(ended.err) == 1
    assert not out.exists()


@pytest.mark.filterwarnings("ignore:Without calibration text")
def test_a_lora_adapter(trained: Callable[..., Path], run_cli: RunCli, tmp_path: Path) -> None:
    """One that a merge made of a MonoLoRA adapter; the file of float32 is the adapter."""
    lora, out = tmp_path / "lora", tmp_path / "gguf"
    flags = ("--as", "lora", *UNVERIFIED, "--min-fidelity", "-9")
    assert run_cli("merge", trained(), lora, *flags).status == 0
    ended = run_cli("export", lora, out, "--as", "lora", "--types", "f32", "q8_0", *FEW)
    assert ended.status == 0, ended.err
    assert {path.name for path in out.iterdir()} == {"adapter-f32.gguf", "adapter-q8_0.gguf", "export.json"}
    record = json.loads((out / "export.json").read_text())
    assert record["reference"] == str(lora)
    whole, small = (record["files"][f"adapter-{kind}.gguf"]["sets"]["refusals"] for kind in ("f32", "q8_0"))
    assert whole["identical"]["mean"] == 1
    assert abs(whole["kl"]["mean"]) < 1e-9 < abs(small["kl"]["mean"])  # 0 to rounding, and not
    assert run_cli("export", lora, out, "--as", "lora", *FEW, "--overwrite").status == 0
    assert {path.name for path in out.iterdir()} == {"adapter-f16.gguf", "export.json"}


@pytest.mark.parametrize("family", ["gemma", "gemma3_text", "phi3", "mistral"])
def test_families(run_cli: RunCli, tmp_path: Path, family: str) -> None:
    """Their files hold the model and its tokens; what transformers does not read is read tensor by tensor."""
    kind = {"phi3": "phi3", "mistral": "llama"}.get(family, "gemma")
    model, out = save_tiny_family(tmp_path / "model", family, sentencepiece_tokenizer(kind)), tmp_path / "gguf"
    ended = run_cli("export", model, out, "--types", "f32", *FEW)
    assert ended.status == 0, ended.err
    compared = json.loads((out / "export.json").read_text())["files"]["model-f32.gguf"]
    assert compared["reader"] == ("gguf" if family in ("gemma", "mistral") else "transformers")
    assert compared["same_tokens"]
    assert compared["sets"]["refusals"]["identical"]["mean"] == 1
    assert compared["sets"]["refusals"]["kl"]["mean"] < 1e-9


@pytest.mark.parametrize("earlier", [False, True])
def test_a_disk_that_takes_no_more(chat_model: Path, run_cli: RunCli, tmp_path: Path, earlier: bool) -> None:
    """Nothing is left; an earlier export stays."""
    out = tmp_path / "gguf"
    if earlier:
        assert run_cli("export", chat_model, out, "--types", "q8_0", *FEW).status == 0
    before = contents(out)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        ended = run_cli("export", chat_model, out, "--types", "f16", *FEW, "--overwrite")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ended.status == 1
    assert f"Cannot save into {out}: " in ended.err[-1]
    assert contents(out) == before
    assert [path for path in tmp_path.iterdir() if path != out] == []


def test_a_file_that_is_not_read_again(
    chat_model: Path, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the reader says is said, not that the disk is full; nothing is left."""

    read = export.AutoModelForCausalLM.from_pretrained

    def refuse(*folder: object, **options: object) -> object:
        if "gguf_file" in options:
            raise OSError("this architecture is not known")
        return read(*folder, **options)

    monkeypatch.setattr(export.AutoModelForCausalLM, "from_pretrained", refuse)
    ended = run_cli("export", chat_model, tmp_path / "gguf", "--types", "f32", *FEW)
    assert ended.status == 1
    assert "this architecture is not known" in ended.err[-1]
    assert "Free space" not in ended.err[-1]
    assert list(tmp_path.iterdir()) == []
