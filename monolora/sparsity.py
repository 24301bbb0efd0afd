"""How sparse an adapter's units are, measured while the model runs.

Sparsity is the share of exact zeros in ``act(A x)`` over tokens (padding left out), units and adapted
modules (paper, table 2). A unit is dead if it was zero on every measured token. Plain LoRA adapters are
measured alike, on ``A x``: their share of exact zeros is 0 but for chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers import TrainerCallback

from monolora.layer import MonoLoraLayer


class Sparsity(NamedTuple):
    """What a measurement found.

    Attributes:
        zeros: share of exact zeros among all unit activations, 0 to 1.
        dead_units: units that were zero on every token.
        units: all units measured.
        tokens: tokens measured (the most that any module saw).
        modules: per module name, its share of zeros.
    """

    zeros: float
    dead_units: int
    units: int
    tokens: int
    modules: dict[str, float]


class _ModuleCount:
    """Counts of one module, on its device; nothing here waits for the device."""

    def __init__(self, units: int, device: torch.device) -> None:
        self.zeros_R = torch.zeros(units, dtype=torch.int64, device=device)
        self.tokens = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, h: torch.Tensor, keep: torch.Tensor | None) -> None:
        zero_TR = (h == 0).reshape(-1, h.shape[-1])
        if keep is None:
            self.tokens += zero_TR.shape[0]
        else:
            zero_TR = zero_TR & keep.reshape(-1, 1)
            self.tokens += keep.sum()
        self.zeros_R += zero_TR.sum(0)


class SparsityMeter:
    """Counts zeros of every unit of the active adapters while it is attached to a model.

    Example:
        >>> meter = SparsityMeter(model)
        >>> with meter.measuring():
        ...     model(**batch)
        >>> meter.result().zeros

    Args:
        model: a model with MonoLoRA or LoRA layers, wrapped in a ``PeftModel`` or not.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
        self._names = {layer: name for name, layer in self._layers.items()}
        self._keep: torch.Tensor | None = None
        self._counts: dict[str, _ModuleCount] = {}

    def reset(self) -> None:
        """Forget everything counted so far."""
        self._counts = {}

    @contextmanager
    def measuring(self) -> Iterator[SparsityMeter]:
        """Count during the ``with`` block."""
        handles = self.attach()
        try:
            yield self
        finally:
            self.detach(handles)

    def attach(self) -> list[Any]:
        """Start counting; returns what :meth:`detach` wants back."""
        handles: list[Any] = [self._model.register_forward_pre_hook(self._note_padding, with_kwargs=True)]
        for layer in self._layers.values():
            if isinstance(layer, MonoLoraLayer):
                layer.unit_observer = self._observe
            else:
                for A in layer.lora_A.values():
                    handles.append(A.register_forward_hook(self._hook_for(layer)))
        return handles

    def detach(self, handles: list[Any]) -> None:
        """Stop counting."""
        for layer in self._layers.values():
            if isinstance(layer, MonoLoraLayer):
                layer.unit_observer = None
        for handle in handles:
            handle.remove()
        self._keep = None

    def _note_padding(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self._keep = mask.bool() if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None

    def _hook_for(self, layer: LoraLayer) -> Any:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            self._count(layer, output.detach())

        return hook

    def _observe(self, layer: MonoLoraLayer, adapter_name: str, h: torch.Tensor) -> None:
        self._count(layer, h.movedim(layer.unit_dim, -1))

    def _count(self, layer: LoraLayer, h: torch.Tensor) -> None:
        name = self._names[layer]
        if name not in self._counts or len(self._counts[name].zeros_R) != h.shape[-1]:
            self._counts[name] = _ModuleCount(h.shape[-1], h.device)
        keep = self._keep
        if keep is not None:
            # While generating with a cache the mask covers the past too; the tokens at hand are its last ones.
            keep = keep[:, -h.shape[1] :] if h.dim() == 3 and keep.shape[0] == h.shape[0] else None
        self._counts[name].add(h, keep)

    def result(self) -> Sparsity:
        """The counts so far.

        Raises:
            RuntimeError: if no adapted module was run: the adapter is not active, or targets nothing here.
        """
        if not self._counts:
            raise RuntimeError("No adapted module was run while measuring: is the adapter active, and on this model?")
        zeros = dead = total = units = tokens = 0
        modules = {}
        for name, count in self._counts.items():
            seen, zeros_R = int(count.tokens), count.zeros_R.tolist()
            modules[name] = sum(zeros_R) / max(1, seen * len(zeros_R))
            zeros += sum(zeros_R)
            total += seen * len(zeros_R)
            dead += sum(z == seen for z in zeros_R)
            units += len(zeros_R)
            tokens = max(tokens, seen)
        return Sparsity(zeros / max(1, total), dead, units, tokens, modules)


class SparsityCallback(TrainerCallback):
    """Adds ``sparsity`` and ``dead_units`` to every logged training step, over the tokens since the last one."""

    def __init__(self) -> None:
        self._meter: SparsityMeter | None = None
        self._handles: list[Any] = []

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        if model is not None and any(isinstance(module, LoraLayer) for module in model.modules()):
            self._meter = SparsityMeter(model)
            self._handles = self._meter.attach()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self._meter is None or logs is None or "loss" not in logs or not self._meter._counts:
            return
        measured = self._meter.result()
        self._meter.reset()
        added = {"sparsity": measured.zeros, "dead_units": measured.dead_units}
        logs.update(added)
        if state.log_history:
            state.log_history[-1].update(added)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._meter is not None:
            self._meter.detach(self._handles)
            self._meter = None
