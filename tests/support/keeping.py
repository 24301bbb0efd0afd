"""Models for the tests of keepers: a tiny Llama, and adapters that are silent on a given sequence by construction."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from monolora.units import adapted_layers

TOKENIZER: Any = SimpleNamespace(pad_token_id=0)


def tiny_llama() -> LlamaForCausalLM:
    """Random weights, 64 tokens, 32 wide, so that a short sequence is linearly independent in every layer."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@torch.no_grad()
def silent_on(model: Any, ids: torch.Tensor) -> None:
    """Give every unit a row with ``a·x = −1`` on each token of a sequence, and B random numbers.

    The rows are found on the base's inputs, which are the adapted model's where all units are silent.
    """
    inputs: dict[Any, torch.Tensor] = {}
    layers = adapted_layers(model)
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: inputs.__setitem__(module, args[0][0].detach().double()))
        for layer in layers
    ]
    with model.disable_adapter():
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        away = torch.linalg.lstsq(inputs[layer], -torch.ones(ids.shape[1], 1).double()).solution.T
        null = torch.eye(inputs[layer].shape[1]).double() - torch.linalg.pinv(inputs[layer]) @ inputs[layer]
        A.copy_((away + torch.randn(A.shape).double() @ null).to(A.dtype))
        B.copy_(torch.randn(B.shape))
