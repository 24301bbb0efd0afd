"""Law 1: with B = 0, as at the start of training, the adapted model gives the base's outputs bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from monolora import MonoLoraConfig

ACTIVATIONS = ["relu", "identity", "softplus", "topk:2"]


class ConvNet(nn.Module):
    """One convolution of each rank; maps ``(batch, 2, 4, 4, 4)`` to ``(batch, 3)``."""

    def __init__(self) -> None:
        super().__init__()
        self.three = nn.Conv3d(2, 4, 2)
        self.two = nn.Conv2d(4, 4, 2, stride=2, padding=1)
        self.one = nn.Conv1d(4, 3, 3, padding=1, groups=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.two(self.three(x).mean(2).tanh()).mean(2)
        return self.one(x).mean(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_llama_with_all_linear_layers(
    make_llama: Callable[..., LlamaForCausalLM], ids: torch.Tensor, activation: str, dtype: torch.dtype
) -> None:
    base = make_llama(dtype=dtype)
    expected = base(ids).logits
    model = get_peft_model(base, MonoLoraConfig(target_modules="all-linear", activation=activation))
    assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_llama_with_embedding_and_head(
    make_llama: Callable[..., LlamaForCausalLM], ids: torch.Tensor, activation: str, dtype: torch.dtype
) -> None:
    base = make_llama(dtype=dtype)
    expected = base(ids).logits
    config = MonoLoraConfig(target_modules=["embed_tokens", "lm_head"], activation=activation)
    assert torch.equal(get_peft_model(base, config)(ids).logits, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gpt2_with_transposed_weights(
    make_gpt2: Callable[..., GPT2LMHeadModel], ids: torch.Tensor, activation: str, dtype: torch.dtype
) -> None:
    base = make_gpt2(dtype=dtype)
    expected = base(ids).logits
    config = MonoLoraConfig(target_modules=["c_attn", "c_proj", "wte"], activation=activation, fan_in_fan_out=True)
    assert torch.equal(get_peft_model(base, config)(ids).logits, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_convolutions(activation: str, dtype: torch.dtype) -> None:
    base = ConvNet().to(dtype)
    x = torch.randn(2, 2, 4, 4, 4, dtype=dtype)
    expected = base(x)
    model = get_peft_model(base, MonoLoraConfig(target_modules=["one", "two", "three"], activation=activation))
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"lora_dropout": 0.5},
        {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 50}},
        {"lora_bias": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_under_every_setting_and_in_training_mode_too(
    make_llama: Callable[..., LlamaForCausalLM], ids: torch.Tensor, settings: dict[str, Any]
) -> None:
    base = make_llama(attention_bias=True)
    expected = base(ids).logits
    model = get_peft_model(base, MonoLoraConfig(target_modules=["q_proj", "v_proj"], **settings))
    assert torch.equal(model(ids).logits, expected)
    assert torch.equal(model.train()(ids).logits, expected)
