"""How large the outputs of the adapted modules are without the adapter: the yardstick of a unit's effect."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from monolora.errors import InputError
from monolora.explain.layout import Layout, not_of_tokens

TOKENS = 4096  # over so many, or some more, the norms are measured
_FEWEST = 8  # batches of a window that are measured, if it has them: of the longest texts, the shortest and between


class OutputNorms:
    """Mean norm ``‖W x‖`` of each module's base layer over counted tokens.

    A hook on a base layer takes a MonoLoRA layer off its fused path, so that only some batches are measured. Texts come
    in windows, sorted by length. The norms are over batches at even distances of the first window, and of those after
    it until there are 4,096 tokens: of short texts and of long ones. Of a data set with fewer tokens, all are measured.
    """

    def __init__(self, layout: Layout) -> None:
        self._layers: dict[str, Any] = dict(layout.layers)
        self._ranks = layout.ranks
        self._sums: dict[str, float] = dict.fromkeys(layout.layers, 0.0)
        self.tokens = 0

    def places(self, tokens: Sequence[int]) -> set[int]:
        """Which batches of a window to measure; none where there are enough tokens.

        Args:
            tokens: counted ones of each batch.
        """
        missing, batches = TOKENS - self.tokens, len(tokens)
        if missing <= 0:
            return set()
        number = min(batches, max(_FEWEST, math.ceil(batches * missing / sum(tokens))))
        return {(2 * i + 1) * batches // (2 * number) for i in range(number)}

    @contextmanager
    def measuring(self, counted_BL: torch.Tensor) -> Iterator[None]:
        """Measure the forwards of the ``with`` block, whose tokens are these.

        Raises:
            InputError: in the block, if a module sees other rows than the tokens (with its name).
        """
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

    def _add(self, name: str, counted_BL: torch.Tensor, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        norms = torch.linalg.vector_norm(output.float(), dim=-1)
        if norms.numel() != counted_BL.numel():
            raise not_of_tokens(name)
        norm_BL = norms.reshape(counted_BL.shape)
        self._sums[name] += float(norm_BL[counted_BL.to(norm_BL.device)].sum(dtype=torch.float64))

    def check_finite(self) -> None:
        """Refuse outputs that are not finite; they may only follow from units that are not, so look at these first.

        Raises:
            InputError: if an output was not finite on a counted token (with its module).
        """
        for name, norm in self._sums.items():
            if not math.isfinite(norm):
                raise InputError(
                    f"The outputs of {name} are not finite even without the adapter: they overflow the number format, "
                    "or the base model is broken. Try --dtype float32."
                )

    def mean(self) -> torch.Tensor:
        """Of every unit's module, float64 ``(U,)``."""
        by_unit = [self._sums[name] / self.tokens for name, rank in self._ranks.items() for _ in range(rank)]
        return torch.tensor(by_unit, dtype=torch.float64)
