"""Several adapters added up, and adapters of PEFT's own methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import IA3Config, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from monolora.adapters import load_adapted, load_sum
from tests.support.merge_runs import OTHER, Ended, logits, report_of, sentences

Trained = Callable[..., Path]
Merge = Callable[..., Path]


IDENTITY = ("--activation", "identity")


@pytest.mark.parametrize("weights", [("1", "-0.5"), ("-0.25", "2")])
@pytest.mark.parametrize("form", ["dense", "lora"])
def test_sums_of_linear_units_are_exact(merge: Merge, trained: Trained, weights: list[str], form: str) -> None:
    adapters = [str(trained(*IDENTITY)), str(trained(*IDENTITY, *OTHER))]
    out = merge(*adapters, "--weights", *weights, "--as", form, folder=trained().parent / f"{form}{weights[0]}")
    report = report_of(out)
    assert report["merge"]["weights"] == [float(weight) for weight in weights]
    assert report["merge"]["adapters"] == adapters
    assert report["task"] is None  # no run was scored with this sum
    assert report["kept"] == pytest.approx(1, abs=1e-3)
    wanted, _ = load_sum(adapters, [float(weight) for weight in weights], dtype="float32")
    loaded = load_adapted(str(out), dtype="float32")[0] if form == "lora" else AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(loaded), logits(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("weights", [("1", "-0.5"), ("1", "1")])
def test_sums_are_exact_with_their_relu(merge: Merge, trained: Trained, weights: list[str]) -> None:
    adapters = [str(trained()), str(trained(*OTHER))]
    out = merge(*adapters, "--weights", *weights, "--method", "exact")
    wanted, _ = load_sum(adapters, [float(weight) for weight in weights], dtype="float32")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), logits(wanted))
    assert report_of(out)["kept"] == 1
    assert not torch.allclose(logits(wanted), logits(load_adapted(adapters[0], dtype="float32")[0]), atol=1e-3)


def test_the_linear_map_of_a_sum(merge: Merge, trained: Trained) -> None:
    report = report_of(merge(trained(), trained(*OTHER), "--weights", "1", "0.5"))
    assert report["kept"] > 0.9
    assert set(report["modules"]) == {
        f"model.layers.{k}.{m}_proj" for k in (0, 1) for m in ("self_attn.q", "self_attn.v", "mlp.down")
    }


def test_one_adapter_at_another_weight(merge: Merge, trained: Trained) -> None:
    out = merge(trained(), "--weights", "0.5", "--method", "exact")
    wanted, _ = load_sum([str(trained())], [0.5], dtype="float32")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), logits(wanted))
    assert report_of(out)["task"] is None


def test_lora_is_merged_by_peft(merge: Merge, trained: Trained) -> None:
    out = merge(trained("--adapter", "lora"))
    report = report_of(out)
    assert report["merge"]["method"] == "PEFT's own, of LORA"
    assert report["kept"] == pytest.approx(1, abs=1e-4)
    assert report["task"]["same_answers"] == 6
    assert max(report["modules"].values()) < 1e-3
    adapted, _ = load_adapted(str(trained("--adapter", "lora")), dtype="float32")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(out)), logits(adapted), rtol=0, atol=1e-5)


def test_ia3_is_merged_by_peft(merge: Merge, chat_model: Path, tmp_path: Path, write_rows: Callable[..., str]) -> None:
    settings = {"target_modules": ["q_proj"], "feedforward_modules": [], "task_type": "CAUSAL_LM"}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(chat_model), IA3Config(**settings))
    for name, parameter in model.named_parameters():
        if "ia3_l" in name:
            parameter.data.mul_(3)
    model.save_pretrained(tmp_path / "ia3")
    rows = write_rows([{"text": text} for text in sentences(20)])
    out = merge(tmp_path / "ia3", "--verify-on", rows, "--dtype", "float32")
    report = report_of(out)
    assert report["merge"]["method"] == "PEFT's own, of IA3"
    assert report["modules"] == {}  # it adds no delta to a layer
    assert report["kept"] == pytest.approx(1, abs=1e-2)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(loaded), logits(model.eval()), rtol=0, atol=1e-3)


def test_prompt_tuning_cannot_be_merged(
    run_cli: Callable[..., Ended], chat_model: Path, tmp_path: Path, out: Path, write_rows: Callable[..., str]
) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(chat_model), config).save_pretrained(tmp_path / "prompt")
    rows = write_rows([{"text": text} for text in sentences(20)])
    ended = run_cli("merge", tmp_path / "prompt", out, "--verify-on", rows)
    assert ended.status == 2
    assert ended.err == ["error: Adapters of type PROMPT_TUNING cannot be merged into their base."]
    assert not out.exists()
