"""What is served in the tests: a tiny Llama, and an adapter of every kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from peft import LoraConfig
from torch import nn

from monolora import MonoLoraConfig
from tests.support.vllm_process import Adapter

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
SLOTS = 2  # fewer than adapters, so that they take turns
LARGEST_RANK = 8
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIGS: dict[str, LoraConfig] = {
    "mono": MonoLoraConfig(r=8, lora_alpha=8, target_modules=LINEAR),
    "patterns": MonoLoraConfig(
        r=3,
        lora_alpha=4,
        target_modules=["q_proj", "v_proj", "up_proj", "down_proj"],
        use_rslora=True,
        rank_pattern={"q_proj": 5, "layers.1.mlp.up_proj": 1},
        alpha_pattern={"v_proj": -6, "layers.0.mlp.down_proj": 2},
    ),
    "identity": MonoLoraConfig(r=4, target_modules=["q_proj", "k_proj", "down_proj"], activation="identity"),
    "lora": LoraConfig(r=8, target_modules=LINEAR),
    "vocabulary": LoraConfig(r=4, target_modules=["embed_tokens", "lm_head", "o_proj"]),
}


class Served(NamedTuple):
    """What is served.

    Attributes:
        base: its checkpoint.
        adapters: by name.
        models: transformers' versions; the base under ``None``.
    """

    base: Path
    adapters: Mapping[str, Adapter]
    models: Mapping[str | None, nn.Module]

    def adapter(self, name: str | None) -> Adapter | None:
        """The request's adapter; None for the base."""
        return None if name is None else self.adapters[name]
