"""One tiny Llama with its adapters, and one engine for the session."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import pytest
from peft import get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from tests.support.served import CONFIGS, LARGEST_RANK, SIZES, SLOTS, Served
from tests.support.vllm_process import Adapter, Engine


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
        served.base,
        enable_lora=True,
        max_loras=SLOTS,
        max_cpu_loras=4,
        max_lora_rank=LARGEST_RANK,
        max_num_seqs=8,
        block_size=32,  # so that a prompt of the tests fills one, and the prefix cache is used
    ) as started:
        yield started
