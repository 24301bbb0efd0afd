"""``monolora keep-report``: the report that a run writes, of any adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import IA3Config, get_peft_model
from transformers import LlamaForCausalLM

from tests.support.merge_runs import Ended
from tests.support.program_runs import Outcome


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def prompts(write_rows: Callable[..., str]) -> str:
    """A file of prompts."""
    return write_rows([{"prompt": f"What is {number}?"} for number in range(5)], "mine.jsonl")


@pytest.mark.parametrize("adapter", ["monolora", "lora"])
def test_the_report_of_the_run(
    run_sft: Callable[..., Outcome], run_cli: Callable[..., Ended], prompts: str, adapter: str
) -> None:
    """The same numbers as at the end of the training, measured on the saved adapter."""
    run = run_sft("--adapter", adapter, "--keep-report", prompts, "--keep-answer-tokens", "6", "--skip-eval")
    flags = ["--prompts", prompts, "--max-new-tokens", "6", "--dtype", "float32"]
    ended = run_cli("keep-report", run.folder, *flags, "--json")
    assert ended.status == 0, ended.err
    measured, recorded = json.loads(ended.out)["mine"], run.record["results"]["keeping"]["sets"]["mine"]
    assert measured["anchors"] == 5
    assert measured["kl"]["mean"] == pytest.approx(recorded["kl"]["mean"], rel=1e-3)
    assert measured == recorded | {"kl": measured["kl"]}
    table = run_cli("keep-report", run.folder, *flags)
    assert "KL to the base, nats a token" in table.out
    assert "5 prompts" in table.out


def test_an_adapter_without_units(
    run_cli: Callable[..., Ended], chat_model: Path, tmp_path: Path, prompts: str
) -> None:
    """Any method of PEFT: no silence, but everything else."""
    model = LlamaForCausalLM.from_pretrained(chat_model)
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "ia3")
    ended = run_cli(
        "keep-report", tmp_path / "ia3", "--prompts", prompts, "--max-new-tokens", "3", "--model", chat_model
    )
    assert ended.status == 0, ended.err
    assert "neither MonoLoRA nor LoRA" in ended.out
    assert "100.0%" in ended.out  # IA³ begins as the base


def test_what_cannot_work_is_one_line(run_cli: Callable[..., Ended], chat_model: Path, tmp_path: Path) -> None:
    """Status 2."""
    for words, message in (
        ((tmp_path, "--prompts", "refusal"), "Unknown set of prompts 'refusal'"),
        ((tmp_path, "--prompts", "refusals"), "adapter_config.json"),
        ((tmp_path, "--prompts", "none.jsonl"), "none.jsonl"),
        ((tmp_path, "--max-samples", "0"), "must be at least 1"),
    ):
        ended = run_cli("keep-report", *words)
        assert ended.status == 2
        assert message in ended.err[-1]
