"""Stock vLLM serves what a merge writes: the adapter and the dense checkpoint, with transformers' log-probabilities."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import LlamaForCausalLM
from vllm_engine import prompt_log_probs

from monolora.merge import export_dense, export_lora, linearize

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
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
def by_transformers(folders: Folders) -> list[list[float]]:
    """The adapted model's log-probabilities."""
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(folders.base), folders.adapter)
    return _log_probs(model.eval())


@torch.no_grad()
def _log_probs(model: nn.Module) -> list[list[float]]:
    """For each prompt, the log-probability of every token but the first."""
    answers = []
    for token_ids in PROMPTS:
        logits = model(torch.tensor([token_ids])).logits[0, :-1]
        answers.append(logits.log_softmax(-1).gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0].tolist())
    return answers


def _largest_difference(ours: list[list[float]], theirs: list[list[float]]) -> float:
    pairs = [pair for one, other in zip(ours, theirs, strict=True) for pair in zip(one, other, strict=True)]
    return max(abs(a - b) for a, b in pairs)


def test_adapter(folders: Folders, by_transformers: list[list[float]]) -> None:
    served = prompt_log_probs(folders.base, PROMPTS, lora_folder=folders.adapter)
    assert _largest_difference(served, by_transformers) < 2e-5


def test_dense(folders: Folders, by_transformers: list[list[float]]) -> None:
    served = prompt_log_probs(folders.dense, PROMPTS)
    assert _largest_difference(served, by_transformers) < 2e-5


def test_base(folders: Folders, by_transformers: list[list[float]]) -> None:
    """vLLM and transformers agree on the base too, and it is far from the adapted model."""
    served = prompt_log_probs(folders.base, PROMPTS)
    assert _largest_difference(served, _log_probs(LlamaForCausalLM.from_pretrained(folders.base))) < 2e-5
    assert _largest_difference(served, by_transformers) > 0.1


def test_engine_failure(folders: Folders) -> None:
    """What the engine printed at its end is in the message. An adapter is no checkpoint."""
    with pytest.raises(RuntimeError, match=r"(?s)ended with status 1:\n.*config\.json"):
        prompt_log_probs(folders.adapter, PROMPTS)
