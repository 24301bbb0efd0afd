"""Layers that accelerate keeps on disk or outside of the computing device, because the model does not fit there.

Their parameters are empty. A hook brings the values in for each forward, out of a mapping from names to tensors; saving
reads them from there too, one file at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from accelerate.hooks import AlignDevicesHook
from torch import nn

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
