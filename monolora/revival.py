"""Revival: units that are never on start again with new rows of A."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from monolora.activations import activation_named
from monolora.layer import MonoLoraLayer
from monolora.units import matrices_of


def revive(
    layer: MonoLoraLayer,
    units: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    adapter: str = "default",
) -> None:
    """Give units new random rows of A, as a new adapter has them, zero columns of B, and no memory of the optimizer's.

    A unit that was zero on some tokens adds nothing there after it either, so the layer's output on them is the same,
    bit for bit. That holds where units do not compete, so not for ``topk`` and ``batchtopk``.

    Args:
        layer: a layer of the model.
        units: their indices.
        optimizer: of the layer's parameters, whose state has tensors of their shape (Adam's moments, say), or none yet.
        generator: of the rows, on the CPU.
        adapter: whose units.
    """
    A, B = matrices_of(layer, adapter)
    rows = torch.empty(len(units), *A.shape[1:])
    if adapter in layer.lora_embedding_A:
        nn.init.normal_(rows, generator=generator)
    else:
        nn.init.kaiming_uniform_(rows, a=math.sqrt(5), generator=generator)
    threshold: Any = layer.threshold(adapter)
    parts: list[tuple[torch.nn.Parameter, Any, Any]] = [(A, units, rows.to(A)), (B, (slice(None), units), 0.0)]
    if isinstance(threshold, nn.Parameter):
        parts.append((threshold, units, activation_named(layer.activation[adapter]).threshold))
    with torch.no_grad():
        for parameter, at, value in parts:
            parameter[at] = value
            for moment in optimizer.state[parameter].values() if parameter in optimizer.state else ():
                if isinstance(moment, torch.Tensor) and moment.shape == parameter.shape:
                    moment[at] = 0
