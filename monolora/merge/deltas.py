"""Layers that accelerate keeps on disk or outside of the computing device, because the model does not fit there.

Their parameters are empty. A hook brings the values in for each forward, out of a mapping from names to tensors; saving
reads them from there too, one file at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.hooks import AlignDevicesHook
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from monolora.errors import InputError
from monolora.layer import MonoLoraLayer
from monolora.merge.baked import BakedLayer
from monolora.merge.unload import Units, active_units, lora_units, unpack

# Makes what is added: a low-rank product, as large as the weight only while it is needed.
Addition = Callable[[], torch.Tensor]


class _Added(Mapping[str, torch.Tensor]):
    """Stored tensors with something added to some of them whenever they are read: nothing is held in memory."""

    def __init__(self, stored: Mapping[str, torch.Tensor], additions: Mapping[str, Addition]) -> None:
        self._stored, self._additions = stored, additions

    def __getitem__(self, name: str) -> torch.Tensor:
        value = self._stored[name]
        return plus(value, self._additions[name]()) if name in self._additions else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def values_of(layer: nn.Module, name: str) -> torch.Tensor:
    """The values of an offloaded parameter."""
    return _hook(layer).weights_map[name]


def merge_on_disk(layer: nn.Module, additions: Mapping[str, Addition]) -> None:
    """Add to an offloaded layer's parameters, at the moment that they are read.

    Args:
        layer: a layer whose own parameters are offloaded.
        additions: by parameter name, what makes a tensor of its shape.
    """
    hook = _hook(layer)
    hook.weights_map = _Added(hook.weights_map, additions)


def _hook(layer: nn.Module) -> AlignDevicesHook:
    hook = vars(layer)["_hf_hook"]
    assert isinstance(hook, AlignDevicesHook)
    return hook


def plus(value: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """The sum, made in float32 and rounded once to the dtype of ``value``."""
    return (value.float() + added.to(value.device)).to(value.dtype)


# From inputs (…, in), or token ids of an embedding, to (…, out).
Delta = Callable[[torch.Tensor], torch.Tensor]


def adapter_deltas(model: PeftModel) -> dict[str, Delta]:
    """The active adapter's delta on each linear layer and embedding, by their names in the base model."""
    layers: dict[str, Any] = {
        name: layer for name, layer in model.get_base_model().named_modules() if isinstance(layer, LoraLayer)
    }
    if any(isinstance(layer, MonoLoraLayer) for layer in layers.values()):
        units = active_units(model)
        return {name: _of_units(own, _is_embedding(layers[name])) for name, own in units.items()}
    return {
        name: _of_units(lora_units(layer, model.active_adapter), _is_embedding(layer))
        for name, layer in layers.items()
        if model.active_adapter in layer.scaling and not isinstance(layer.get_base_layer(), nn.modules.conv._ConvNd)
    }


def merged_deltas(merged: PreTrainedModel | PeftModel, adapted: PeftModel, names: Iterable[str]) -> dict[str, Delta]:
    """The delta of a dense or exact checkpoint, or of a LoRA adapter, on the named layers.

    Raises:
        InputError: if the merged model has no such layers.
    """
    if isinstance(merged, PeftModel):
        deltas = adapter_deltas(merged)
        return {name: deltas[name] for name in _all_in(names, deltas)}
    modules, base = dict(merged.named_modules()), dict(adapted.get_base_model().named_modules())
    return {name: _of_module(modules[name], base[name].get_base_layer()) for name in _all_in(names, modules)}


def _all_in(names: Iterable[str], modules: Container[str]) -> list[str]:
    required = list(names)
    missing = [name for name in required if name not in modules]
    if missing:
        raise InputError(
            f"The merged model has no {missing[0]} ({len(missing)} such): it is a merge of something else."
        )
    return required


def _of_module(module: nn.Module, base: nn.Module) -> Delta:
    if isinstance(module, BakedLayer):
        return _of_units(_in_memory(module), _is_embedding(module))
    return _of_weights(module, base)


def _in_memory(layer: BakedLayer) -> Units:
    """The units of a baked layer, from disk if offloaded."""
    units = layer.units
    if units.A.device.type != "meta":
        return units
    bias = None if units.bias is None else values_of(layer, "monolora_B_bias")
    threshold = None if units.threshold is None else values_of(layer, "monolora_threshold")
    A, B = values_of(layer, "monolora_A"), values_of(layer, "monolora_B")
    return units._replace(A=A, B=B, bias=bias, threshold=threshold)


def _values(layer: nn.Module, name: str) -> torch.Tensor:
    """A parameter in float32: from disk if offloaded, dequantized if quantized."""
    if layer.get_parameter(name).device.type == "meta":
        return values_of(layer, name).float()
    if name == "weight":
        unpack(layer)
        return dequantize_module_weight(layer).float()
    return layer.get_parameter(name).float()


def _of_units(units: Units, embedding: bool) -> Delta:
    """``s (B act(A x) + b)``."""
    A, B = units.A.float(), units.B.float()
    b = None if units.bias is None else units.bias.float()

    def delta(x: torch.Tensor) -> torch.Tensor:
        z = F.embedding(x, A.T) if embedding else F.linear(x.float(), A)
        return units.scaling * F.linear(units.activate(z), B, b)

    return delta


def _of_weights(module: nn.Module, base: nn.Module) -> Delta:
    """``(W - W_base) x + b - b_base``; the difference is as large as the weights, and made only while it is used."""

    def delta(x: torch.Tensor) -> torch.Tensor:
        difference = _values(module, "weight") - _values(base, "weight")
        if isinstance(module, nn.Embedding):
            return F.embedding(x, difference)
        bias = None if module.bias is None else _values(module, "bias") - _values(base, "bias")
        return F.linear(x.float(), difference.T if isinstance(module, Conv1D) else difference, bias)

    return delta


def _is_embedding(layer: nn.Module) -> bool:
    base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    return isinstance(base, nn.Embedding)
