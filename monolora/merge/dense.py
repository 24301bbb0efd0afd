"""A stock checkpoint with linear maps merged into its weights: ``W + s B A'``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from monolora.errors import InputError
from monolora.layer import MonoLoraLayer
from monolora.merge.least_squares import LinearMap
from monolora.merge.offloaded import merge_on_disk, plus
from monolora.merge.unload import Units, active_units, dequantized, unload
from monolora.model_files import save_model


def export_dense(
    model: PeftModel,
    maps: Mapping[str, LinearMap],
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write a checkpoint that every loader reads: config, generation config, sharded safetensors, tokenizer.

    Args:
        model: the adapted model; it is consumed. A quantized base is dequantized.
        maps: as :func:`~monolora.merge.linearize` gives them for this model.
        folder: where to write.
        tokenizer: saved beside it, with its chat template.
        max_shard_size: as for ``save_pretrained``.

    Raises:
        InputError: if an adapter's trained bias on B has no bias of the base layer to go to, or a layer that shares its
            weight with another one is offloaded.
    """
    units = active_units(model)
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    dequantized(base)
    layers = {name: layer for name, layer in base.named_modules() if name in units}
    for name, layer in layers.items():
        _check_bias(name, layer, units[name])
    shared = _shared_weights(base)
    for name, layer in layers.items():
        _merge(name, layer.get_base_layer(), units[name], maps[name], shared)
    base, _ = unload(model)
    save_model(base, folder, tokenizer, max_shard_size=max_shard_size)


def dense_delta(units: Units, linear_map: LinearMap) -> torch.Tensor:
    """``s B A'``, shape ``(out, in)``, float32."""
    return units.scaling * (units.B.float() @ linear_map.A.to(units.B.device))


def dense_bias(units: Units, linear_map: LinearMap) -> torch.Tensor | None:
    """``s (B c + b)``, shape ``(out,)``, float32, of an intercept c and a trained bias b on B; None without either."""
    parts = [units.bias.float()] if units.bias is not None else []
    if linear_map.intercept is not None:
        parts.append(units.B.float() @ linear_map.intercept.to(units.B.device))
    return units.scaling * torch.stack(parts).sum(0) if parts else None


def _check_bias(name: str, layer: MonoLoraLayer, units: Units) -> None:
    if units.bias is not None and layer.get_base_layer().bias is None:
        raise InputError(
            f"The adapter trained a bias on B (lora_bias), and {name} has no bias that it could go to in a stock "
            "checkpoint. Merge exactly, or as a LoRA adapter."
        )


def _shared_weights(model: nn.Module) -> set[int]:
    """Storage of the weights that several modules share (tied embeddings)."""
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _merge(name: str, base: nn.Module, units: Units, linear_map: LinearMap, shared: set[int]) -> None:
    """Add delta and bias to a base layer, in float32, rounded once."""
    weight, bias = base.weight, dense_bias(units, linear_map)
    assert isinstance(weight, nn.Parameter)

    def delta() -> torch.Tensor:
        found = dense_delta(units, linear_map)
        return found.T if isinstance(base, (Conv1D, nn.Embedding)) else found

    additions = {"weight": delta} | ({} if bias is None else {"bias": lambda: bias})
    if weight.device.type == "meta":
        if id(weight) in shared:
            raise InputError(f"{name} shares its weight with another layer, and is not in memory. Raise --max-memory.")
        merge_on_disk(base, additions)
        return
    if id(weight) in shared:
        base.weight = nn.Parameter(weight.data, requires_grad=weight.requires_grad)
    for kind, added in additions.items():
        parameter = base.get_parameter(kind)
        parameter.data = plus(parameter.data, added())
