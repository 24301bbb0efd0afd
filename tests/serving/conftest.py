"""What is served in the tests: a tiny Llama, an adapter of every kind, and one engine for the session."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM
from vllm_process import Adapter, Engine

from monolora import MonoLoraConfig

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


@pytest.fixture(scope="session")
def served(
    make_llama: Callable[..., LlamaForCausalLM],
    fill: Callable[..., nn.Module],
    tmp_path_factory: pytest.TempPathFactory,
) -> Served:
    """A tiny Llama and its adapters, with noise in A and B."""
    root = tmp_path_factory.mktemp("served")
    make_llama(**SIZES).save_pretrained(root / "base")
    models: dict[str | None, nn.Module] = {None: LlamaForCausalLM.from_pretrained(root / "base")}
    adapters = {}
    for number, (name, config) in enumerate(CONFIGS.items(), start=1):
        model = get_peft_model(LlamaForCausalLM.from_pretrained(root / "base"), config)
        fill(model, number)
        model.save_pretrained(root / name, save_embedding_layers=False)
        models[name] = model.eval()
        adapters[name] = Adapter(name, number, str(root / name))
    return Served(root / "base", adapters, models)


@pytest.fixture(scope="session")
def engine(served: Served) -> Iterator[Engine]:
    """vLLM with the plugin, and room for two adapters at once."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    with Engine(
        served.base, enable_lora=True, max_loras=SLOTS, max_cpu_loras=4, max_lora_rank=LARGEST_RANK, max_num_seqs=8
    ) as started:
        yield started
