"""What is targeted by default and by ``all-linear`` in every family, and the names offered where nothing matches."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from monolora import MonoLoraConfig
from monolora.layer import MonoLoraLayer
from monolora.targets import (
    all_linear,
    default_targets,
    fused_experts,
    near_misses,
    other_towers,
    read_as_experts,
    target_names,
)
from tests.support.tiny_families import tiny_gemma3, tiny_model

Q_AND_V = {"q_proj", "v_proj"}
# Families whose attention goes by other names than q_proj and v_proj, or query and value.
OTHER_NAMES: dict[str, set[str] | str] = {
    family: set(names.split()) if names[0] != "." else names
    for families, names in {
        "axk1 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa hy_v4 longcat_flash minicpm3 youtu": (
            "q_b_proj kv_b_proj"  # multi-head latent attention
        ),
        "axk2": "q_gate_proj kv_b_proj",
        "deepseek_v4": "q_b_proj kv_proj",
        "kimi_linear": "q_proj v_proj kv_b_proj",
        "bloom falcon fuyu gpt_neox gpt_neox_japanese persimmon": "query_key_value",
        "gpt-sw3 gpt2 gpt_bigcode openai-gpt": "c_attn",
        "codegen phi3 phi4_multimodal": "qkv_proj",
        "mpt": "Wqkv",
        "minimax": "q_proj v_proj qkv_proj",
        "qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text": "q_proj v_proj in_proj_qkv",
        "qwen3_next": "q_proj v_proj in_proj_qkvz",
        "bamba falcon_mamba granitemoehybrid mamba mamba2": "in_proj",  # no attention
        "cpmant": "project_q project_v",
        "ctrl": "Wq Wv",
        "jetmoe": "kv_proj",  # its queries are made by experts
        "moshi": "q_proj.linear v_proj.linear",
        "prophetnet": "query_proj value_proj",
        "xlm": "q_lin v_lin",
        "xlstm": "q v",
        "zaya": "q_proj v_proj_current v_proj_delayed",
        # PEFT's own
        "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
        "nemotron_h": "q_proj k_proj v_proj o_proj",
        "phi": "q_proj v_proj fc1 fc2",
        "rwkv": "key value receptance output",
    }.items()
    for family in families.split()
}
NEEDED: dict[str, dict[str, Any]] = {
    "gemma3n_text": {"num_hidden_layers": 35},
    "gpt_neo": {"num_hidden_layers": 24},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "jamba": {"num_hidden_layers": 8},
    "kimi_linear": {"num_hidden_layers": 27},
    "prophetnet": {"num_hidden_layers": None},
    "zamba2": {"num_hidden_layers": 54},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "reformer": {"is_decoder": True},
    "zamba": {"num_hidden_layers": 76},
}
# Their default config makes no model here, or no text model of its own.
NOT_MADE = {
    "cohere_compass_text", "dbrx", "dots1", "gemma3n", "gemma4_assistant", "gemma4_unified_assistant", "musicgen",
    "musicgen_melody", "qwen4_exp", "qwen4_exp_text",
}  # fmt: skip


def empty_model(family: str) -> PreTrainedModel:
    """A model of four layers in the family's default sizes, without weights."""
    with torch.device("meta"):
        options = {"num_hidden_layers": 4} | NEEDED.get(family, {})
        config = CONFIG_MAPPING[family](**{key: value for key, value in options.items() if value is not None})
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.filterwarnings("ignore")  # of the families' own code
def test_every_family_has_defaults() -> None:
    """All that transformers has as causal language models, but XLNet, whose projections are bare parameters."""
    found = {family: default_targets(empty_model(family)) for family in FAMILIES}
    usual = {family: targets for family, targets in found.items() if family not in OTHER_NAMES}
    assert set(map(frozenset, usual.values())) == {frozenset(Q_AND_V), frozenset({"query", "value"})}
    assert {family: found[family] for family in OTHER_NAMES} == OTHER_NAMES
    with pytest.raises(ValueError, match="No module is known to make queries or values"):
        default_targets(empty_model("xlnet"))


FAMILIES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - NOT_MADE - {"xlnet"})


@pytest.mark.parametrize("family", sorted(NOT_MADE))
def test_families_that_are_left_out_cannot_be_made(family: str) -> None:
    refused = (AttributeError, ImportError, KeyError, TypeError, ValueError, StrictDataclassFieldValidationError)
    with pytest.raises(refused):
        empty_model(family)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_next", "granitemoehybrid", "gpt_oss", "llama4_text"])
def test_defaults_are_adapted(family: str) -> None:
    """Without target_modules, in families for which PEFT has no defaults too; law 1 holds."""
    model = tiny_model(family)
    ids = torch.arange(3, 23).view(2, 10)
    before = model(input_ids=ids).logits
    adapted = get_peft_model(model, MonoLoraConfig(task_type="CAUSAL_LM"))
    layers = {name.rpartition(".")[-1] for name, module in adapted.named_modules() if isinstance(module, MonoLoraLayer)}
    assert layers == default_targets(tiny_model(family))
    assert torch.equal(adapted(input_ids=ids).logits, before)


def test_all_linear_is_pefts(make_llama: Callable[..., LlamaForCausalLM]) -> None:
    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = get_peft_model(make_llama(), config).get_base_model()
    adapted = {name for name, module in theirs.named_modules() if "lora_A" in module._modules}
    assert all_linear(make_llama()) == adapted


def test_all_linear_leaves_out_routers_and_says_what_of_experts() -> None:
    """Llama 4's router is a linear module that returns a tuple, on which PEFT's own LoRA fails."""
    model = tiny_model("llama4_text")
    with pytest.warns(UserWarning, match=r"leaves the experts out: .*layers.1.feed_forward.experts.gate_up_proj, 2 in"):
        targets = all_linear(model)
    assert "model.layers.1.feed_forward.shared_expert.up_proj" in targets
    assert not any("router" in name for name in targets)
    with pytest.raises(ValueError, match="cannot adapt a Llama4Router"):
        get_peft_model(model, MonoLoraConfig(target_modules=["router"], task_type="CAUSAL_LM"))


@pytest.mark.parametrize("family", ["mixtral", "granitemoehybrid", "gpt_oss"])
def test_fused_experts(family: str) -> None:
    model = tiny_model(family)
    experts = fused_experts(model)
    assert len(experts) == 4
    assert all(model.get_parameter(name).shape[0] == 4 for name in experts)
    assert fused_experts(tiny_model("llama")) == []


def test_towers_are_what_text_does_not_go_through() -> None:
    """The parts that a forward of text calls, and those that are named as towers, have no module in common."""
    model = tiny_gemma3()
    assert other_towers(model) == ["model.multi_modal_projector", "model.vision_tower"]
    called: set[str] = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    model(input_ids=torch.tensor([[4, 5, 6]]))
    in_towers = {name for name, _ in model.named_modules() if name.startswith(tuple(other_towers(model)))}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert not called & in_towers
    assert linear - in_towers <= called


@pytest.mark.parametrize(("family", "towers"), [("git", ["git.image_encoder"]), ("whisper", []), ("blt", [])])
def test_towers_of_other_families(family: str, towers: list[str]) -> None:
    assert other_towers(empty_model(family)) == towers


def test_targets_that_peft_takes_for_experts() -> None:
    """PEFT's LoRA moves them to parameters: what it adapts then is not what was named."""
    model = tiny_model("qwen3_next")
    names = ["q_proj", "up_proj", "gate_proj", "layers.0.mlp.shared_expert.down_proj"]
    assert read_as_experts(model, LoraConfig(target_modules=names)) == set(names[1:])
    assert read_as_experts(model, LoraConfig(target_modules=["q_proj"])) == set()
    assert read_as_experts(model, LoraConfig(target_modules=r".*\.(q|up|gate)_proj")) == {"gate_up_proj"}
    assert read_as_experts(model, MonoLoraConfig(target_modules=names)) == set()
    assert read_as_experts(tiny_model("llama"), LoraConfig(target_modules=names)) == set()
    with pytest.warns(RuntimeWarning, match="gate_up_proj"):  # of the patterns that PEFT itself adds
        adapted = get_peft_model(model, LoraConfig(target_modules=names, task_type="CAUSAL_LM"))
    assert not any(re.search(r"shared_expert.*lora_A", name) for name, _ in adapted.named_parameters())


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
