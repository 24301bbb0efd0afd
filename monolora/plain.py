"""What the fused path needs to know of a layer: whether its weights are plain, and the dtype it would compute in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn


class Dense(NamedTuple):
    """What the fused path computes with: see :func:`monolora.functional.monolora_linear`."""

    adapter: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    A: torch.Tensor
    B: torch.Tensor
    scaling: float
    activation: str


def bare_weight(module: nn.Module | None) -> nn.Parameter | None:
    """An ordinary dense weight of a plain nn.Linear without hooks or a replaced forward."""
    if (
        type(module) is not nn.Linear
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    ):
        return None
    weight = module._parameters.get("weight")
    return weight if type(weight) is nn.Parameter and weight.dim() == 2 else None


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which ``nn.Linear`` would compute on ``x`` here."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
