"""Sparsity of an adapter's units, measured while the model runs.

Sparsity is the share of exact zeros in ``act(A x)`` over tokens (padding left out), units and adapted
modules (paper, table 2). A unit is dead if it was zero on every measured token. Plain LoRA adapters are
measured the same way, on ``A x``: their share of exact zeros is 0 up to chance.

Shapes: T tokens, R units.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from monolora.errors import InputError
from monolora.units import adapted_layers, inner_model, watch


class Sparsity(NamedTuple):
    """The result of a measurement.

    Attributes:
        zeros: share of exact zeros among all unit activations, 0 to 1.
        dead_units: units that were zero on every token.
        units: all units measured.
        tokens: tokens measured (the most that any module saw).
        modules: per module, by its name in the base model, its share of zeros.
    """

    zeros: float
    dead_units: int
    units: int
    tokens: int
    modules: dict[str, float]


class _Count:
    """Counts of one adapter in one module, on its device, without synchronising with it."""

    def __init__(self, units: int, device: torch.device) -> None:
        self.zeros_R = torch.zeros(units, dtype=torch.int64, device=device)
        self.tokens = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, h_TR: torch.Tensor, keep_T: torch.Tensor | None, times: int) -> None:
        zero_TR = h_TR == 0
        if keep_T is None:
            self.tokens += times * zero_TR.shape[0]
        else:
            zero_TR = zero_TR & keep_T[:, None]
            self.tokens += times * keep_T.sum()
        self.zeros_R += times * zero_TR.sum(0)


def real_tokens(inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """Which tokens of a batch are no padding, boolean; None if nothing marks any.

    Args:
        inputs: of a model's forward, by name. Padding is what a 2-D ``attention_mask`` marks with 0. Without one it is,
            as TRL pads what is packed, each token that is a sequence of its own by ``position_ids``.
    """
    mask, positions, ids = (inputs.get(name) for name in ("attention_mask", "position_ids", "input_ids"))
    if isinstance(mask, torch.Tensor):
        return mask.bool() if mask.dim() == 2 else None
    if not isinstance(positions, torch.Tensor) or ids is None or positions.shape != ids.shape or ids.shape[1] == 1:
        return None
    is_first = positions == 0
    return ~(is_first & F.pad(is_first[:, 1:], (0, 1), value=True))


class RealTokens:
    """Which of the rows that a module sees are tokens of the model's batch, and for how many tokens each stands.

    Padding is left out (:func:`real_tokens`).
    Modules that see other rows than the batch's tokens (a pooler, a routed expert, a convolution) are counted whole.
    A common prefix that is computed once (:mod:`monolora.shared_prefix`) counts for every row.

    Args:
        model: whose forward is given the batch, wrapped in a ``PeftModel`` or not.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = inner_model(model)
        self._signature = inspect.signature(self._model.forward)
        self._mask: torch.Tensor | None = None

    def attach(self) -> Callable[[], None]:
        """Follow the model's forward; returns what ends it."""
        hook = self._model.register_forward_pre_hook(self._note_mask, with_kwargs=True)

        def end() -> None:
            hook.remove()
            self._mask = None

        return end

    def _note_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._mask = real_tokens(self._signature.bind_partial(*args, **kwargs).arguments)

    def times(self, rows: torch.Size) -> int:
        """For how many rows of the batch a row stands: all of them for their common prefix, else one."""
        mask = self._mask
        is_shared = mask is not None and len(rows) == 2 and rows[0] == 1 < mask.shape[0] and rows[1] < mask.shape[1]
        return mask.shape[0] if mask is not None and is_shared else 1

    def mask(self, rows: torch.Size) -> torch.Tensor | None:
        """A flat mask of the rows that are tokens, not padding; None if all are.

        Raises:
            ValueError: for a part of a batch of several adapters.
        """
        mask = self._mask
        if mask is None:
            return None
        if rows.numel() == mask.numel():
            return mask.reshape(-1)
        if len(rows) == 2 and rows[0] == mask.shape[0] and rows[1] < mask.shape[1]:
            # While generating with a cache the mask covers the past too; the current tokens are its last ones.
            return mask[:, -rows[1] :].reshape(-1)
        if len(rows) == 2 and rows[1] == mask.shape[1]:
            raise ValueError("Padding cannot be told apart in a batch of mixed adapters; measure them one at a time.")
        return None


class SparsityMeter:
    """Counts zeros of every unit of the active adapters while it is attached to a model.

    ``RealTokens`` says which rows are tokens.
    Under gradient checkpointing a layer runs twice a step and is counted twice, which changes no share.

    Example:
        >>> meter = SparsityMeter(model)
        >>> with meter.measuring():
        ...     model(**batch)
        >>> meter.result().zeros

    Args:
        model: a model with MonoLoRA or LoRA layers, wrapped in a ``PeftModel`` or not.
        training_only: whether to skip layers in evaluation mode, and passes without gradients, as of a reference.

    Raises:
        ValueError: for an encoder-decoder model, which has two kinds of padding.
    """

    def __init__(self, model: nn.Module, *, training_only: bool = False) -> None:
        inner = inner_model(model)
        if isinstance(inner, PreTrainedModel) and inner.config.is_encoder_decoder:
            raise ValueError("SparsityMeter measures decoder-only and encoder-only models, not encoder-decoder ones.")
        self._training_only = training_only
        self._names = adapted_layers(inner)
        self._tokens = RealTokens(inner)
        self._counts: dict[tuple[str, str], _Count] = {}

    @property
    def has_counts(self) -> bool:
        """Whether anything has been counted since the last reset."""
        return bool(self._counts)

    def reset(self) -> None:
        """Forget everything counted so far."""
        self._counts = {}

    @contextmanager
    def measuring(self) -> Iterator[SparsityMeter]:
        """Count during the ``with`` block."""
        ends = self.attach()
        try:
            yield self
        finally:
            self.detach(ends)

    def attach(self) -> list[Callable[[], None]]:
        """Start counting; returns the handles for :meth:`detach`."""
        return [self._tokens.attach(), *watch(self._names, self._observe)]

    def detach(self, ends: list[Callable[[], None]]) -> None:
        """Stop counting."""
        for end in ends:
            end()

    def _observe(self, layer: LoraLayer, adapter_name: str, h: torch.Tensor) -> None:
        assert isinstance(layer, nn.Module)  # as every class of LoRA layers is
        if self._training_only and not (layer.training and torch.is_grad_enabled()):
            return
        keep_T = self._tokens.mask(h.shape[:-1])
        key, units = (self._names[layer], adapter_name), h.shape[-1]
        if key not in self._counts:
            self._counts[key] = _Count(units, h.device)
        self._counts[key].add(h.reshape(-1, units), keep_T, self._tokens.times(h.shape[:-1]))

    def result(self, over_processes: bool = False) -> Sparsity:
        """The counts so far.

        Args:
            over_processes: whether those of all processes are added up; each of them has to ask for it.

        Raises:
            RuntimeError: if no adapted module was run: the adapter is not active, or targets nothing here.
        """
        if not self._counts:
            raise RuntimeError("No adapted module was run while measuring: is the adapter active, and on this model?")
        dead = units = tokens = 0
        zeros: dict[str, int] = {}
        total: dict[str, int] = {}
        parts = [{key: [int(count.tokens), *count.zeros_R.tolist()] for key, count in self._counts.items()}]
        parts = gather_object(parts) if over_processes else parts
        for key in dict.fromkeys(key for part in parts for key in part):
            name, (seen, *zeros_R) = key[0], map(sum, zip(*(part[key] for part in parts if key in part), strict=True))
            zeros[name] = zeros.get(name, 0) + sum(zeros_R)
            total[name] = total.get(name, 0) + seen * len(zeros_R)
            dead += sum(z == seen for z in zeros_R)
            units += len(zeros_R)
            tokens = max(tokens, seen)
        modules = {name: zeros[name] / max(1, total[name]) for name in zeros}
        return Sparsity(sum(zeros.values()) / max(1, sum(total.values())), dead, units, tokens, modules)


class UnitsOn:
    """Of every token of the batches that are run, how many units are not zero; padding counts as any token.

    To be given to :func:`monolora.units.watch`, for one batch. A token is silent if it is none: the adapter adds
    nothing there. A common prefix that is computed once (:mod:`monolora.shared_prefix`) is of every row.

    Raises:
        InputError: when called for a module that is not run on every token, such as the output layer.

    Attributes:
        on_BT: of the rows and tokens of the batch; None before anything was run.
        units: how many there are.
    """

    def __init__(self) -> None:
        self.on_BT: torch.Tensor | None = None
        self.units = 0
        self._passes: dict[torch.Size, torch.Tensor] = {}  # of the prefix, with one row, and of the rest

    def __call__(self, layer: LoraLayer, adapter_name: str, h_BTR: torch.Tensor) -> None:
        on_BT = (h_BTR != 0).sum(-1)
        first = next(iter(self._passes), on_BT.shape)
        is_rest = len(self._passes) == 1 and first[0] == 1 < on_BT.shape[0]
        if self._passes and on_BT.shape not in self._passes and not is_rest:
            raise InputError(
                "The adapter has units that are not computed on every token, as those of an output layer, so no token "
                "can be said to be silent. Measure an adapter without it."
            )
        if on_BT.shape == first:  # every layer is in each pass
            self.units += h_BTR.shape[-1]
        self._passes[on_BT.shape] = self._passes.get(on_BT.shape, 0) + on_BT
        rows = max(map(len, self._passes.values()))
        self.on_BT = torch.cat([part.expand(rows, -1) for part in self._passes.values()], 1)


class SparsityCallback(TrainerCallback):
    """Adds ``sparsity`` and ``dead_units`` to every logged training step, over the training tokens since the last one.

    The tokens are those of all processes.

    Not for a compiled model, where counting would break the graph at every layer.

    Example:
        >>> SparsityCallback().add_to(trainer)
    """

    def __init__(self) -> None:
        self._meter: SparsityMeter | None = None
        self._ends: list[Callable[[], None]] = []

    def add_to(self, trainer: Any) -> None:
        """Add this callback to a ``transformers.Trainer``, ahead of the reporters, so that they see its numbers too."""
        trainer.add_callback(self)
        callbacks = trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop())

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        if args.torch_compile or model is None:
            return
        if any(isinstance(module, LoraLayer) for module in model.modules()):
            self._meter = SparsityMeter(model, training_only=True)
            self._ends = self._meter.attach()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self._meter is None or logs is None or "loss" not in logs or not self._meter.has_counts:
            return
        measured = self._meter.result(over_processes=True)
        self._meter.reset()
        added = {"sparsity": measured.zeros, "dead_units": measured.dead_units}
        logs.update(added)
        if state.log_history:
            state.log_history[-1].update(added)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._meter is not None:
            self._meter.detach(self._ends)
            self._meter = None
