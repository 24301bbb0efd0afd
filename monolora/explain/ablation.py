"""Units taken out while a model runs: every row of a batch without units of its own (zero ablation).

Shapes: N rows of a batch, R units of a module.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft.tuners import lora
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from monolora.errors import InputError
from monolora.layer import monolora_class
from monolora.units import MERGING, UnitName, adapted_layers, inner_model


@contextmanager
def ablated(model: nn.Module, rows: Sequence[Collection[UnitName]], adapter: str = "default") -> Iterator[None]:
    """During it, row ``b`` of every batch runs without the units in ``rows[b]``: their activations are 0 before B.

    Modules of which no row lacks a unit are left alone, the fused path included. In the others all rows take the same
    path, so that rows of one batch differ by their ablations and not by rounding. Works in ``forward`` and in
    ``generate`` with a cache, of one beam.

    Example:
        >>> with ablated(model, [[], [UnitName("model.layers.3.self_attn.q_proj", 5)]]):
        ...     with_all, without = model(ids.expand(2, -1)).logits

    Args:
        model: with LoRA or MonoLoRA layers, wrapped in a ``PeftModel`` or not.
        rows: units by row of the batch; those of a row may be empty.
        adapter: whose units.

    Raises:
        InputError: for a unit that the adapter does not have.
        ValueError: for a unit that cannot be taken out: of an embedding, of a parameter of experts, of a variant of
            LoRA (DoRA and the like) or a merged one. While the model runs: if a batch has another number of rows, or
            a module sees something else than all of its tokens (a routed expert).
    """
    layers = {name: layer for layer, name in adapted_layers(model).items()}
    missing: dict[str, list[tuple[int, int]]] = {}
    for row, units in enumerate(rows):
        for unit in units:
            missing.setdefault(unit.module, []).append((row, unit.unit))
    inner = inner_model(model)
    batch = _Batch()
    least = 3 if isinstance(inner, PreTrainedModel) else None
    with ExitStack() as handles:
        if least is not None:
            handles.callback(inner.register_forward_pre_hook(batch, with_kwargs=True).remove)
        for name, cells in missing.items():
            layer: Any = layers.get(name)
            _check(layer, name, adapter, max(unit for _, unit in cells))
            of_class: type[LoraLayer] = type(layer)
            B, unit_dim = layer.lora_B[adapter], monolora_class(of_class).unit_dim
            missing_NR = torch.zeros(len(rows), layer.r[adapter], dtype=torch.bool)
            missing_NR[tuple(zip(*cells, strict=True))] = True
            hook = _Without(name, missing_NR, unit_dim, least or 1 - unit_dim, batch)
            handles.callback(B.register_forward_pre_hook(hook).remove)
        yield


def why_not_ablated(model: nn.Module, adapter: str = "default") -> dict[str, str]:
    """Modules whose units :func:`ablated` refuses to take out, each with the reason; empty if it takes all.

    Modules that only turn out to see something else than the rows of a batch (a routed expert) are not among them.

    Args:
        model: with LoRA or MonoLoRA layers, wrapped in a ``PeftModel`` or not.
        adapter: whose units.
    """
    reasons = {name: _why_not(layer, adapter) for layer, name in adapted_layers(model).items() if adapter in layer.r}
    return {name: reason for name, reason in reasons.items() if reason is not None}


class _Batch:
    """A hook before a transformer that records the number of tokens in a row of its batch."""

    tokens: int | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = [*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
        self.tokens = next((tensor.shape[1] for tensor in inputs if tensor is not None), None)


class _Without:
    """A hook before B that sets activations to 0.

    Args:
        name: of the module, for messages.
        missing_NR: true for what is taken out.
        unit_dim: where the units are in B's input, from the end.
        least: dimensions that the input has if its first is the rows. In a transformer a linear layer with less sees
            the tokens of all rows one after the other, as a shared expert does, or those that a router chose.
        batch: the batch that the model is at.
    """

    def __init__(self, name: str, missing_NR: torch.Tensor, unit_dim: int, least: int, batch: _Batch) -> None:
        self._name, self._missing_NR, self._unit_dim, self._least = name, missing_NR, unit_dim, least
        self._batch = batch

    def __call__(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
        (h,) = args
        rows, units = self._missing_NR.shape
        self._missing_NR = self._missing_NR.to(h.device)  # which B's weight need not say: it may be on disk
        missing_NR, flat = self._missing_NR, h.dim() < self._least
        if flat and self._batch.tokens is not None:
            rows *= self._batch.tokens
            missing_NR = missing_NR.repeat_interleave(self._batch.tokens, 0)
        if h.shape[0] != rows or (flat and self._batch.tokens is None):
            raise ValueError(
                f"{self._name} sees units of shape {tuple(h.shape)}, which are not those of {len(self._missing_NR)} "
                "rows: give a batch of as many rows as there are lists of units. Routed experts cannot be ablated."
            )
        between = (1,) * (h.dim() + self._unit_dim - 1)  # of the dimensions of h, those that come before the units'
        after = (1,) * (-self._unit_dim - 1)
        return h.masked_fill(missing_NR.view(rows, *between, units, *after), 0)


def _check(layer: Any, name: str, adapter: str, largest: int) -> None:
    """Refuse what :func:`ablated` refuses; ``largest`` is the largest of the units to be taken out of this layer."""
    if layer is None or adapter not in layer.r or largest >= layer.r[adapter]:
        unit = UnitName(name, largest)
        raise InputError(
            f"The adapter {adapter!r} has no unit {unit}. Name a module that it adapts and a row of its A."
        )
    reason = _why_not(layer, adapter)
    if reason is not None:
        raise ValueError(f"The units of {name} cannot be taken out: {reason}.")


def _why_not(layer: LoraLayer, adapter: str) -> str | None:
    """Why this layer's units cannot be taken out; None if they can."""
    if isinstance(layer, lora.Embedding):
        return "an embedding keeps its B where its input cannot be changed"
    if isinstance(layer, MERGING):
        return f"{type(layer).__name__} merges the adapter into the base weight at every call"
    if adapter in layer.lora_variant:
        return "the adapter is a variant of LoRA that does more than add B A x"
    return "the adapter is merged into the base weight; unmerge it" if layer.merged else None
