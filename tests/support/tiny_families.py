"""Tiny models of families with experts, with random weights and the tokenizer of the tiny chat model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tests.support.tiny_chat import CHAT_TEMPLATE, train_tokenizer

# Taken as far as a family's config has a field of the name.
_SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "moe_intermediate_size": 32, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 32, "shared_intermediate_size": 32,
}  # fmt: skip
_OF_FAMILY: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1,
        "mamba_d_state": 16, "mamba_chunk_size": 16,
    },
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2,
        "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    },
    "llama4_text": {"intermediate_size_mlp": 32, "moe_layers": [1]},
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3_text": {"query_pre_attn_scalar": 32},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip


def tiny_model(family: str, vocab_size: int = 100) -> PreTrainedModel:
    """A model of two layers, four experts where it has experts, from seed 0; in eval mode."""
    config_class = CONFIG_MAPPING[family]
    known = config_class().to_dict()
    fields = {name: value for name, value in _SMALL.items() if name in known} | _OF_FAMILY.get(family, {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config_class(vocab_size=vocab_size, **fields)).eval()


def save_tiny_family(folder: Path, family: str, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    """Save such a model with a tokenizer, by default the tiny chat model's; returns the folder."""
    if tokenizer is None:
        tokenizer = train_tokenizer()
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    tiny_model(family, len(tokenizer)).save_pretrained(folder)
    return folder


def tiny_gemma3() -> Gemma3ForConditionalGeneration:
    """A text and a vision model whose attention goes by the same names."""
    text = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=3)
    )
