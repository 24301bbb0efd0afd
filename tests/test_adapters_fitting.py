"""Does an adapter fit a base? Told without loading either, as PEFT tells it by loading."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from monolora import MonoLoraConfig
from monolora.adapters import check_fits
from monolora.errors import InputError


@pytest.mark.parametrize("config", [LoraConfig, MonoLoraConfig])
def test_its_own_base(make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path, config: type[LoraConfig]) -> None:
    make_llama().save_pretrained(tmp_path / "base")
    adapted = get_peft_model(make_llama(), config(r=3, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "adapter")
    check_fits(str(tmp_path / "adapter"), str(tmp_path / "base"))


def test_transposed_weights(make_gpt2: Callable[..., GPT2LMHeadModel], tmp_path: Path) -> None:
    make_gpt2().save_pretrained(tmp_path / "base")
    adapted = get_peft_model(make_gpt2(), LoraConfig(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True))
    adapted.save_pretrained(tmp_path / "adapter")
    check_fits(str(tmp_path / "adapter"), str(tmp_path / "base"))


def test_a_quantized_base_is_passed_over(make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path) -> None:
    make_llama(hidden_size=32).save_pretrained(tmp_path / "base")
    get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"quantization_config": {}}))
    check_fits(str(tmp_path / "adapter"), str(tmp_path / "base"))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"hidden_size": 32}, r"q_proj has 16 inputs, and the model's weight is of shape \(32, 32\)"),
        ({"intermediate_size": 48}, r"up_proj has 24 outputs, and the model's weight is of shape \(48, 16\)"),
    ],
)
def test_other_sizes(
    make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path, changed: dict[str, int], says: str
) -> None:
    make_llama(**changed).save_pretrained(tmp_path / "base")
    modules = ["up_proj"] if "intermediate_size" in changed else ["q_proj"]
    get_peft_model(make_llama(), MonoLoraConfig(target_modules=modules)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=says):
        check_fits(str(tmp_path / "adapter"), str(tmp_path / "base"))
    with pytest.raises((RuntimeError, ValueError)):  # PEFT agrees
        PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")


def test_modules_that_the_file_names_otherwise_are_passed_over(
    make_gpt2: Callable[..., GPT2LMHeadModel], tmp_path: Path
) -> None:
    make_gpt2().transformer.save_pretrained(tmp_path / "base")  # without the prefix that its language model has
    adapted = get_peft_model(make_gpt2(), LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    adapted.save_pretrained(tmp_path / "adapter")
    check_fits(str(tmp_path / "adapter"), str(tmp_path / "base"))
