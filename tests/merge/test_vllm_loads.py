"""Stock vLLM serves what a merge writes: the adapter and the dense checkpoint, with transformers' log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import LlamaForCausalLM

from monolora.merge import export_dense, export_lora, linearize
from tests.support.requirements import NEEDS_VLLM
from tests.support.vllm_process import Adapter, Engine, largest_difference

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    NEEDS_VLLM,
]

VOCAB = 64
PROMPTS = [[5, 9, 30, 22, 7, 50, 61, 3], [40, 4, 17], [8, 8, 33, 12, 60, 21, 11, 44, 19, 28, 56, 6]]
SIZES = {"hidden_size": 64, "num_attention_heads": 2}  # heads of 32: vLLM's smallest on a CPU


class Folders(NamedTuple):
    """What is served.

    Attributes:
        base: the checkpoint that was adapted.
        adapter: the LoRA adapter of it.
        dense: the same model with the adapter in its weights.
    """

    base: Path
    adapter: Path
    dense: Path


@pytest.fixture(scope="module")
def folders(
    make_llama: Callable[..., LlamaForCausalLM],
    adapt: Callable[..., PeftModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Folders:
    """A tiny Llama with a MonoLoRA adapter that does something, and what its linear merge writes."""
    root = tmp_path_factory.mktemp("served")
    folders = Folders(root / "base", root / "adapter", root / "dense")
    make_llama(**SIZES).save_pretrained(folders.base)
    model = adapt(LlamaForCausalLM.from_pretrained(folders.base), target_modules=["q_proj", "v_proj"])
    ids = torch.randint(3, VOCAB, (16, 32), generator=torch.Generator().manual_seed(3))
    maps = linearize(model, [{"input_ids": ids}])
    export_lora(model, maps, folders.adapter)
    export_dense(model, maps, folders.dense)
    return folders


@pytest.fixture(scope="module")
def adapted(folders: Folders) -> nn.Module:
    """transformers' version of what was merged to a LoRA adapter."""
    return PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(folders.base), folders.adapter).eval()


def test_base_and_adapter(folders: Folders, adapted: nn.Module) -> None:
    """The base agrees too, and is far from the adapted model. Not in one batch: there stock vLLM errs on a CPU."""
    with Engine(folders.base, stock=True, enable_lora=True, max_loras=1, max_lora_rank=8) as engine:
        of_base = engine.generate(PROMPTS)
        of_adapter = engine.generate(PROMPTS, [Adapter("adapter", 1, str(folders.adapter))] * len(PROMPTS))
    assert largest_difference(of_adapter, adapted) < 2e-5
    assert largest_difference(of_base, LlamaForCausalLM.from_pretrained(folders.base)) < 2e-5
    assert largest_difference(of_base, adapted) > 0.1


def test_dense(folders: Folders, adapted: nn.Module) -> None:
    with Engine(folders.dense, stock=True) as engine:
        assert largest_difference(engine.generate(PROMPTS), adapted) < 2e-5


def test_engine_failure(folders: Folders) -> None:
    """What the engine printed at its end is in the message. An adapter is no checkpoint."""
    with pytest.raises(RuntimeError, match=r"(?s)ended with status 1:\n.*config\.json"):
        Engine(folders.adapter, stock=True)
