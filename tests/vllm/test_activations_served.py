"""Every registered activation in one vLLM engine, in batches that mix them: the logits of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from monolora import MonoLoraConfig
from monolora.activations import activation_named
from tests.support.activations import NAMES
from tests.support.requirements import NEEDS_VLLM
from tests.support.served import LINEAR, SIZES
from tests.support.vllm_process import Adapter, Answer, Engine, largest_difference

pytestmark = [pytest.mark.vllm, pytest.mark.slow, NEEDS_VLLM]

PROMPTS = [[5, 9, 30, 22, 7, 50, 61, 3], [40, 4, 17]]


class Answers(NamedTuple):
    """What one engine answered.

    Attributes:
        mixed: by activation (None for the base), to all prompts in one batch of all adapters.
        alone: by activation, in a batch of its own.
        models: transformers' versions.
        canaries: by activation, what the canary measured.
    """

    mixed: dict[str | None, list[Answer]]
    alone: dict[str | None, list[Answer]]
    models: dict[str | None, nn.Module]
    canaries: dict[str, str]


def _fill(model: PeftModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in model.state_dict().items():
        if "lora_threshold" in key:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.4)
        elif "lora_" in key:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)


@pytest.fixture(scope="module")
def answers(make_llama: object, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    root: Path = tmp_path_factory.mktemp("activations")
    make_llama(**SIZES).save_pretrained(root / "base")  # type: ignore[operator]
    models: dict[str | None, nn.Module] = {None: LlamaForCausalLM.from_pretrained(root / "base").eval()}
    adapters: dict[str | None, Adapter | None] = {None: None}
    for number, name in enumerate(NAMES, start=1):
        # Some with fewer units than the engine has room for, on some modules; some on all.
        rank, targets = (8, LINEAR) if number % 2 else (5, ["q_proj", "v_proj", "up_proj", "down_proj"])
        config = MonoLoraConfig(r=rank, lora_alpha=8, target_modules=targets, activation=name)
        model = get_peft_model(LlamaForCausalLM.from_pretrained(root / "base"), config)
        _fill(model, number)
        folder = root / name.replace(":", "-")
        model.save_pretrained(folder, save_embedding_layers=False)
        adapters[name], models[name] = Adapter(name, number, str(folder)), model.eval()
    settings = {"max_loras": len(NAMES), "max_cpu_loras": len(NAMES), "max_lora_rank": 8, "max_num_seqs": 32}
    with Engine(root / "base", enable_lora=True, **settings) as engine:
        kinds = [name for name in adapters for _ in PROMPTS]
        flat = engine.generate(PROMPTS * len(adapters), [adapters[name] for name in kinds])
        mixed = {name: [a for a, kind in zip(flat, kinds, strict=True) if kind == name] for name in adapters}
        alone = {name: engine.generate(PROMPTS, [adapters[name]] * len(PROMPTS)) for name in adapters}
        canaries = {
            name: engine.canary(adapter.path, PROMPTS) for name, adapter in adapters.items() if adapter is not None
        }
    return Answers(mixed, alone, models, canaries)


@pytest.mark.parametrize("name", [None, *NAMES])
def test_mixed_batches_give_the_logits_of_transformers(answers: Answers, name: str | None) -> None:
    assert largest_difference(answers.mixed[name], answers.models[name]) < 5e-5
    if name is not None:
        assert largest_difference(answers.mixed[name], answers.models[None]) > 0.01
    assert largest_difference(answers.alone[name], answers.models[name]) < 5e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_canary_sees_each_activation(answers: Answers, name: str) -> None:
    assert ("activation=Share(" in answers.canaries[name]) != activation_named(name).is_linear
