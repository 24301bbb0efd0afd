"""How large the outputs of the adapted modules are without the adapter: the yardstick of a unit's effect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from monolora.explain.layout import Layout


class OutputNorms:
    """Mean norm ``‖W x‖`` of each module's base layer over counted tokens.

    A hook on a base layer takes a MonoLoRA layer off its fused path, so they are there for some batches only.
    """

    def __init__(self, layout: Layout) -> None:
        self._layers: dict[str, Any] = dict(layout.layers)
        self._ranks = layout.ranks
        self._sums: dict[str, torch.Tensor] = {}
        self.tokens = 0

    @contextmanager
    def measuring(self, counted_BL: torch.Tensor) -> Iterator[None]:
        """Measure the forwards of the ``with`` block, whose tokens are these."""
        handles = [
            layer.base_layer.register_forward_hook(partial(self._add, name, counted_BL))
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self.tokens += int(counted_BL.sum())

    def resting(self) -> Any:
        """A context manager that measures nothing."""
        return nullcontext()

    def _add(self, name: str, counted_BL: torch.Tensor, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        norm_BL = torch.linalg.vector_norm(output.float(), dim=-1).reshape(counted_BL.shape)
        found = norm_BL[counted_BL.to(norm_BL.device)].sum(dtype=torch.float64).cpu()
        self._sums[name] = self._sums.get(name, torch.zeros_like(found)) + found

    def mean(self) -> torch.Tensor:
        """Of every unit's module, float64 ``(U,)``."""
        return torch.cat([(self._sums[name] / self.tokens).expand(rank) for name, rank in self._ranks.items()])
