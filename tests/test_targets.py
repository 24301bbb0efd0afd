"""The names offered where target_modules match nothing."""

from __future__ import annotations

from collections.abc import Callable

from peft import get_peft_model
from torch import nn
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from monolora import MonoLoraConfig
from monolora.targets import near_misses, target_names


def test_the_names_are_those_of_layers_that_can_be_adapted(
    make_llama: Callable[..., LlamaForCausalLM], make_gpt2: Callable[..., GPT2LMHeadModel]
) -> None:
    llama = ["down_proj", "embed_tokens", "gate_proj", "k_proj", "lm_head", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert target_names(make_llama()) == llama
    assert target_names(make_gpt2()) == ["c_attn", "c_fc", "c_proj", "lm_head", "wpe", "wte"]
    assert target_names(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.LayerNorm(2))) == ["0"]
    assert target_names(nn.Linear(2, 2)) == []


def test_an_adapters_own_layers_are_not_among_them(make_llama: Callable[..., LlamaForCausalLM]) -> None:
    model = make_llama()
    names = target_names(model)
    get_peft_model(model, MonoLoraConfig(target_modules="all-linear"))
    assert target_names(model) == names


def test_the_nearest_names_or_all_of_them(make_llama: Callable[..., LlamaForCausalLM]) -> None:
    model = make_llama()
    assert near_misses(model, ["qproj"]).startswith("Nearest module names: q_proj")
    assert "lm_head" in near_misses(model, {"lmhead", "vproj"})
    assert "v_proj" in near_misses(model, {"lmhead", "vproj"})
    assert near_misses(model, "zzz").startswith("Module names in this model: down_proj, embed_tokens")
    assert near_misses(model, None) == near_misses(model, [])
    assert near_misses(nn.ReLU(), ["x"]) == ""
