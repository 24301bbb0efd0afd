"""Running calibration text through an adapted model and summing up the moments of its layers.

One pass where the sums fit into the memory they are given, else one pass for each part of the layers.

Shapes: T tokens, I inputs (``I1`` with a constant 1 at the end), R units.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import psutil
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from monolora.activations import activate
from monolora.layer import MonoLoraLayer
from monolora.merge.moments import InputSums, Moments, UnitSums
from monolora.merge.unload import Units

Batch = Mapping[str, torch.Tensor]
Progress = Callable[[Sequence[Batch]], Iterable[Batch]]
HELD_OUT_EVERY = 5  # one row in five is kept from the fit, to choose the ridge by


class Folds(NamedTuple):
    """The moments of one layer, over the tokens to fit and over those to choose the ridge by."""

    seen: Moments
    held_out: Moments


def collect(
    model: PeftModel,
    layers: Mapping[str, MonoLoraLayer],
    units: Mapping[str, Units],
    batches: Sequence[Batch],
    progress: Progress,
    memory: int | None = None,
) -> dict[str, Folds]:
    """Moments of the inputs and units of linear layers over the tokens of ``batches``.

    Args:
        model: the adapted model, in evaluation mode.
        layers: its linear layers, by any name.
        units: the layers' units, by the same names.
        batches: arguments of the model's forward; tokens that a 2-D ``attention_mask`` marks with 0 are left out.
        progress: goes around the batches of each pass.
        memory: bytes that the sums may take; by default half of what is free.

    Returns:
        For each layer its moments; layers that hardly any token reached (as experts may be) are left out.
    """
    run = _runner(model, layers.values())
    leaders = _leaders(run, layers, batches[0])
    found: dict[str, Folds] = {}
    for names in _parts(units, leaders, _free_memory() // 2 if memory is None else memory):
        sums = _Sums({name: units[name] for name in names}, leaders)
        with hooked({name: layers[name] for name in names}, sums.observe), torch.inference_mode():
            for batch in progress(batches):
                sums.begin(batch)
                run(**batch)
        found |= sums.result()
    return found


def _runner(model: PeftModel, layers: Iterable[nn.Module]) -> Callable[..., Any]:
    """The forward to call; that of a language model goes without the vocabulary's logits where nobody reads them."""
    base = model.get_base_model()
    body = base.base_model if isinstance(base, PreTrainedModel) else base
    inside = set(body.modules())
    run = body if all(layer in inside for layer in layers) else base
    caches = "use_cache" in inspect.signature(run.forward).parameters
    return partial(run, use_cache=False) if caches else run


@contextmanager
def hooked(layers: Mapping[str, nn.Module], observe: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Show every layer's input to ``observe``, with the layer's name."""
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: observe(name, args[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _leaders(run: Callable[..., Any], layers: Mapping[str, nn.Module], batch: Batch) -> dict[str, str]:
    """For each layer the first one that reads the same tensor right before it, or itself, in the order of the run."""
    leaders: dict[str, str] = {}
    last: tuple[torch.Tensor, str] | None = None

    def observe(name: str, x: torch.Tensor) -> None:
        nonlocal last
        if last is None or x is not last[0]:
            last = (x, name)
        leaders.setdefault(name, last[1])

    with hooked(layers, observe), torch.inference_mode():
        run(**batch)
    return leaders | {name: name for name in layers if name not in leaders}


def _parts(units: Mapping[str, Units], leaders: Mapping[str, str], memory: int) -> Iterator[list[str]]:
    """Layers that are summed up in one pass: at least one group that shares its input, and no more than fit."""
    part: list[str] = []
    left = memory
    for leader in dict.fromkeys(leaders.values()):
        group = [name for name, led_by in leaders.items() if led_by == leader]
        needed = 2 * torch.float64.itemsize * (units[leader].A.shape[1] + 1) ** 2  # two folds
        if part and needed > left:
            yield part
            part, left = [], memory
        part += group
        left -= needed
    yield part


def _free_memory() -> int:
    """Bytes, where the sums will be."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available


class _Sums:
    """The sums of some layers during one pass."""

    def __init__(self, units: Mapping[str, Units], leaders: Mapping[str, str]) -> None:
        self._units, self._leaders = units, leaders
        self._inputs: dict[str, tuple[InputSums, InputSums]] = {}
        self._of_units: dict[str, tuple[UnitSums, UnitSums]] = {}
        self._rows = self._first_row = 0
        self._mask: torch.Tensor | None = None
        self._x: torch.Tensor | None = None
        self._split: tuple[torch.Tensor, ...] = ()

    def begin(self, batch: Batch) -> None:
        """Note which rows and which padding the next forward sees."""
        self._first_row += self._rows
        self._rows = len(next(iter(batch.values())))
        mask = batch.get("attention_mask")
        self._mask = mask.bool() if mask is not None and mask.dim() == 2 else None

    def observe(self, name: str, x: torch.Tensor) -> None:
        leader, A = self._leaders[name], self._units[name].A.to(x.device)
        if name == leader:
            if leader not in self._inputs:
                self._inputs[leader] = (InputSums(A.shape[1], x.device), InputSums(A.shape[1], x.device))
            self._x, self._split = x, self._folds(x)
            for sums, x_TI1 in zip(self._inputs[leader], self._split, strict=True):
                sums.add(x_TI1)
        elif x is not self._x:
            raise RuntimeError(
                f"{name} read the input of {leader} in the first batch, and another one in a later batch."
            )
        if name not in self._of_units:
            units, width = A.shape
            self._of_units[name] = (UnitSums(units, width, x.device), UnitSums(units, width, x.device))
        for of_units, x_TI1 in zip(self._of_units[name], self._split, strict=True):
            h_TR = activate(F.linear(x_TI1[:, :-1], A.to(x_TI1.dtype)), self._units[name].activation)
            of_units.add(h_TR, x_TI1)

    def _folds(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens to fit and those to choose the ridge by, each ``(T, I1)``.

        Whole rows of the batch go one way, since neighbouring tokens are alike; inputs that are no longer in rows (an
        expert's) go token by token.
        """
        if self._mask is not None and x.shape[:-1].numel() == self._mask.numel():
            x = x.reshape(*self._mask.shape, x.shape[-1])  # some models (OPT) flatten the rows
        places = x.shape[:-1]
        whole_rows = places[0] == self._rows
        index = torch.arange(places[0], device=x.device) + (self._first_row if whole_rows else 0)
        held_out = (index % HELD_OUT_EVERY == 1).view(-1, *(1 for _ in places[1:])).expand(places)
        keep = self._mask if self._mask is not None and self._mask.shape == places else torch.ones_like(held_out)
        wide = F.pad(x.double(), (0, 1), value=1.0)
        return wide[keep & ~held_out], wide[keep & held_out]

    def result(self) -> dict[str, Folds]:
        found = {}
        for name, of_units in self._of_units.items():
            inputs = self._inputs[self._leaders[name]]
            if all(sums.tokens for sums in inputs):
                found[name] = Folds(*map(Moments.of, inputs, of_units))
        return found
