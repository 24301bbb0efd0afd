"""A model of a single adapted layer, and what it should compute."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from monolora import MonoLoraConfig, monolora_reference


def adapted(layer: nn.Module, **settings: Any) -> PeftModel:
    """A model of one adapted layer, called ``0``, with noise in A and B, in evaluation mode."""
    model = get_peft_model(nn.Sequential(layer), MonoLoraConfig(**{"target_modules": ["0"], "r": 3} | settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    return model.eval()


def layer_of(model: PeftModel) -> Any:
    return model.base_model.model[0]


def expected(model: PeftModel, x: torch.Tensor, name: str = "default") -> torch.Tensor:
    """The reference, from the layer's own tensors."""
    layer = layer_of(model)
    base = layer.get_base_layer()
    weights = (layer.lora_A[name].weight, layer.lora_B[name].weight)
    return monolora_reference(x, base.weight, base.bias, *weights, layer.scaling[name], layer.activation[name])
