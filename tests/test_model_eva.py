"""PEFT's EVA initialisation: A from the principal directions of the inputs, found by its own code on our layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import EvaConfig, PeftModel, get_eva_state_dict, get_peft_model, initialize_lora_eva_weights
from transformers import LlamaForCausalLM

from monolora import MonoLoraConfig, MonoLoraLayer

Make = Callable[..., LlamaForCausalLM]
pytestmark = pytest.mark.filterwarnings("ignore:lora with eva initialization used with low_cpu_mem_usage=False")


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    """One batch, over and over: 8 rows of 12 tokens, the last three of which are padding."""
    ids = torch.randint(3, 64, (8, 12))
    mask = torch.ones_like(ids)
    mask[:, -3:] = 0
    return [{"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}] * 6


def _adapted(model: LlamaForCausalLM, **settings: Any) -> PeftModel:
    config = {"target_modules": ["q_proj", "down_proj"], "r": 3, "init_lora_weights": "eva"}
    return get_peft_model(model, MonoLoraConfig(**config | settings))


def _inputs(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By module name, its inputs at the tokens that are not padding, ``(tokens, in_features)``."""
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "down_proj")):
            module.register_forward_pre_hook(
                lambda module, args, name=name: seen.update({name: args[0][batch["attention_mask"].bool()]})
            )
    with torch.no_grad():
        model(**batch)
    return seen


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_holds_the_principal_directions_of_the_inputs(
    make_llama: Make, batches: list[dict[str, torch.Tensor]], ids: torch.Tensor, low_cpu_mem_usage: bool
) -> None:
    config = MonoLoraConfig(
        target_modules=["q_proj", "down_proj"], r=3, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0)
    )
    model = get_peft_model(make_llama(), config, low_cpu_mem_usage=low_cpu_mem_usage)
    initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    inputs = _inputs(make_llama(), batches[0])
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, MonoLoraLayer)]
    assert len(layers) == 4
    for name, layer in layers:
        A, x = layer.lora_A["default"].weight, inputs[name.removeprefix("base_model.model.")]
        torch.testing.assert_close(A @ A.T, torch.eye(3), atol=1e-4, rtol=0)
        best = torch.linalg.svdvals(x - x.mean(0))[:3].square().sum()  # the most that three directions can hold
        assert ((x - x.mean(0)) @ A.T).square().sum() > 0.97 * best, name
        assert torch.equal(layer.lora_B["default"].weight, torch.zeros_like(layer.lora_B["default"].weight))
    assert torch.equal(model(ids).logits, make_llama()(ids).logits)


def test_ranks_move_between_layers_and_the_adapter_is_saved_with_them(
    make_llama: Make, batches: list[dict[str, torch.Tensor]], ids: torch.Tensor, tmp_path: Path
) -> None:
    model = _adapted(make_llama(), eva_config=EvaConfig(rho=2.0), activation="topk:2").eval()
    state = get_eva_state_dict(model, batches, show_progress_bar=False)
    ranks = {name: tensor.shape[0] for name, tensor in state.items()}
    assert sum(ranks.values()) == 3 * 4
    assert set(ranks.values()) != {3}
    initialize_lora_eva_weights(model, eva_state_dict=state)
    for name, layer in model.named_modules():
        if isinstance(layer, MonoLoraLayer):
            assert layer.lora_A["default"].weight.shape[0] == ranks[name]
            assert layer.activation == {"default": "topk:2"}
            layer.lora_B["default"].weight.data.normal_()
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(make_llama(), str(tmp_path))(ids).logits, expected)


def test_layers_that_eva_does_not_know_start_as_always(
    make_llama: Make, batches: list[dict[str, torch.Tensor]], ids: torch.Tensor
) -> None:
    model = _adapted(make_llama(), target_modules=["q_proj", "embed_tokens"], eva_config=EvaConfig(rho=1.0))
    with pytest.warns(UserWarning, match=r"initialized with init_lora_weights=True.*embed_tokens"):
        initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    embed = model.base_model.model.model.embed_tokens
    assert embed.lora_embedding_A["default"].abs().min() > 0
    assert torch.equal(model(ids).logits, make_llama()(ids).logits)
