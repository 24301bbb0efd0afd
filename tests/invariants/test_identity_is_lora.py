"""Law 2: ``activation="identity"`` is PEFT's LoRA: outputs and gradients, for every kind of layer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.pytorch_utils import Conv1D

from monolora import MonoLoraConfig, MonoLoraLayer


class Net(nn.Module):
    """A model of one layer, called ``layer``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.is_loaded_in_8bit = isinstance(layer, bnb.nn.Linear8bitLt)
        self.is_loaded_in_4bit = isinstance(layer, bnb.nn.Linear4bit)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def _eight_bit() -> nn.Module:
    layer = bnb.nn.Linear8bitLt(16, 12, has_fp16_weights=False)
    layer.load_state_dict(nn.Linear(16, 12).state_dict())
    return layer.to("cpu")


def _four_bit() -> nn.Module:
    layer = bnb.nn.Linear4bit(64, 12, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict(nn.Linear(64, 12).state_dict())
    return layer.to("cpu")


# Name: how to make the layer, and an input for it.
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "linear": (lambda: nn.Linear(16, 12), lambda: torch.randn(2, 3, 16)),
    "linear_2d": (lambda: nn.Linear(16, 12, bias=False), lambda: torch.randn(5, 16)),
    "gpt2_conv1d": (lambda: Conv1D(12, 16), lambda: torch.randn(2, 3, 16)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), lambda: torch.randn(2, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2), lambda: torch.randn(2, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), lambda: torch.randn(2, 4, 4, 4, 4)),
    "embedding": (lambda: nn.Embedding(9, 12, padding_idx=0), lambda: torch.randint(0, 9, (2, 5))),
    "scaled_embedding": (lambda: Gemma3TextScaledWordEmbedding(9, 12, 0, 3.5), lambda: torch.randint(0, 9, (2, 5))),
    "8bit": (_eight_bit, lambda: torch.randn(2, 3, 16)),
    "4bit": (_four_bit, lambda: torch.randn(2, 3, 64)),
}
QUANTIZED = {"8bit": torch.int8, "4bit": torch.uint8}


def _pair(kind: str, dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[PeftModel, PeftModel]:
    """The same layer under LoRA and under MonoLoRA with the identity, with the same filled A and B."""
    models = []
    for config_class, extra in ((LoraConfig, {}), (MonoLoraConfig, {"activation": "identity"})):
        torch.manual_seed(0)
        layer = LAYERS[kind][0]()
        net = Net(layer if kind in QUANTIZED else layer.to(dtype))
        config = config_class(
            **{"target_modules": ["layer"], "r": 4, "lora_alpha": 6, "fan_in_fan_out": kind == "gpt2_conv1d"}
            | extra
            | settings
        )
        models.append(get_peft_model(net, config))
    theirs, ours = models
    assert isinstance(ours.base_model.model.layer, MonoLoraLayer)
    if kind in QUANTIZED:
        assert ours.base_model.model.layer.base_layer.weight.dtype == QUANTIZED[kind]
    for name, parameter in ours.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
            theirs.get_parameter(name).data.copy_(parameter.data)
    return theirs, ours


def _run(model: PeftModel, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output and the gradient of every parameter of the adapter, and of x if it can have one."""
    torch.manual_seed(1)  # the same dropout
    leaf = x.clone().requires_grad_(x.is_floating_point())
    y = model(leaf)
    (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if "lora_" in name}
    return {"y": y.detach(), **({"x": leaf.grad} if leaf.grad is not None else {}), **found}  # type: ignore[dict-item]


def _assert_same(
    kind: str,
    tolerance: float,
    dtype: torch.dtype = torch.float32,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    **settings: Any,
) -> None:
    theirs, ours = _pair(kind, dtype, **settings)
    x = LAYERS[kind][1]()
    if x.is_floating_point():
        x = x.to(dtype)
    with context():
        expected, found = _run(theirs, x), _run(ours, x)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        largest = value.abs().max().item()
        torch.testing.assert_close(found[name], value, atol=tolerance * largest, rtol=0, msg=f"{name} differs")


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer(kind: str) -> None:
    _assert_same(kind, 1e-6)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"lora_dropout": 0.5}], ids=lambda s: next(iter(s)))
def test_with_rslora_and_dropout(kind: str, settings: dict[str, Any]) -> None:
    _assert_same(kind, 1e-6, **settings)


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if "embedding" not in kind and kind != "linear_2d"])
def test_with_lora_bias(kind: str) -> None:
    _assert_same(kind, 1e-6, lora_bias=True)


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind not in QUANTIZED])
def test_a_bfloat16_base_with_a_float32_adapter(kind: str) -> None:
    _assert_same(kind, 4e-2, torch.bfloat16)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_quantized_base_in_bfloat16(kind: str) -> None:
    _assert_same(kind, 4e-2, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind not in QUANTIZED])
def test_under_autocast(kind: str, dtype: torch.dtype) -> None:
    _assert_same(kind, 4e-2, dtype, lambda: torch.autocast("cpu", torch.bfloat16))


def test_the_pair_does_differ_under_relu() -> None:
    """That the law says anything: the activation is what makes the difference."""
    theirs, ours = _pair("linear")
    x = LAYERS["linear"][1]()
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    ours.base_model.model.layer.activation["default"] = "relu"
    assert not torch.allclose(ours(x), theirs(x), atol=1e-1)
