"""Linear maps in place of an adapter's units, fitted to the moments of its layers on calibration text.

One pass where the sums fit into memory, else one for each part of the layers.

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

from monolora.activations import activation_named
from monolora.errors import InputError
from monolora.layer import MonoLoraLayer
from monolora.merge.least_squares import InputSums, LinearMap, Moments, UnitSums, fit
from monolora.merge.unload import Units, active_units

Batch = Mapping[str, torch.Tensor]
Progress = Callable[[Sequence[Batch]], Iterable[Batch]]
HELD_OUT_EVERY = 5  # one row in five is held out to choose the ridge


class Folds(NamedTuple):
    """The moments of one layer, over the tokens to fit and those to choose the ridge."""

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
        For each layer its moments; layers that too few tokens reached (as of experts) are left out.
    """
    run = _runner(model, layers.values())
    leaders = _leaders(run, layers, batches[0])
    folds: dict[str, Folds] = {}
    for names in _parts(units, leaders, _free_memory() // 2 if memory is None else memory):
        sums = _Sums({name: units[name] for name in names}, leaders)
        with hooked({name: layers[name] for name in names}, sums.observe), torch.inference_mode():
            for batch in progress(batches):
                sums.begin(batch)
                run(**batch)
        folds |= sums.result()
    return folds


def _runner(model: PeftModel, layers: Iterable[nn.Module]) -> Callable[..., Any]:
    """The forward to call: of a language model, without the vocabulary's logits where no layer needs them."""
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
    """For each layer the first of the consecutive layers that read the same tensor, in the order of the run."""
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
    """The layers of each pass: at least one group that shares its input, and no more than fit into memory."""
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
        """Record the rows and padding of the next forward."""
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
            h_TR = self._units[name].activate(F.linear(x_TI1[:, :-1], A.to(x_TI1.dtype)))
            of_units.add(h_TR, x_TI1)

    def _folds(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens to fit and those to choose the ridge by, each ``(T, I1)``.

        Whole rows of the batch go one way, since neighbouring tokens are alike; inputs that are no longer in rows (an
        expert's) go token by token.
        """
        if self._mask is not None and x.shape[:-1].numel() == self._mask.numel():
            x = x.reshape(*self._mask.shape, x.shape[-1])  # some models (OPT) flatten the rows
        shape = x.shape[:-1]
        whole_rows = shape[0] == self._rows
        index = torch.arange(shape[0], device=x.device) + (self._first_row if whole_rows else 0)
        held_out = (index % HELD_OUT_EVERY == 1).view(-1, *(1 for _ in shape[1:])).expand(shape)
        keep = self._mask if self._mask is not None and self._mask.shape == shape else torch.ones_like(held_out)
        wide = F.pad(x.double(), (0, 1), value=1.0)
        return wide[keep & ~held_out], wide[keep & held_out]

    def result(self) -> dict[str, Folds]:
        folds = {}
        for name, of_units in self._of_units.items():
            inputs = self._inputs[self._leaders[name]]
            if all(sums.tokens for sums in inputs):
                folds[name] = Folds(*map(Moments.of, inputs, of_units))
        return folds


# With fewer calibration tokens than this for each input of a layer, too much of the map is left to the ridge.
TOKENS_PER_INPUT = 4
# Where the mean slope of an activation is integrated, in standard deviations of z.
GAUSSIAN_GRID = torch.linspace(-8, 8, 4097, dtype=torch.float64)


def linearize(
    model: PeftModel,
    batches: Sequence[Batch] | None,
    *,
    affine: bool | None = None,
    memory: int | None = None,
    progress: Progress = lambda batches: batches,
) -> dict[str, LinearMap]:
    """A linear map for every module that the active adapter adapts.

    Embeddings need no calibration: a token's units are ``act(A[:, token])``, which is a table again, and exact.

    Args:
        model: a model with one active MonoLoRA adapter, in evaluation mode; it stays as it is.
        batches: arguments of its forward (``input_ids``, ``attention_mask``). None for the best map for standard
            Gaussian inputs, the Gaussian slope of each unit times A: ``A' = A / 2`` under ReLU.
        affine: whether to fit an intercept, which becomes a bias; by default where the base layer has a bias.
        memory: bytes for the second moments; by default half of what is free. Where they need more, the text is run
            through the model several times, for a part of the layers each.
        progress: goes around the batches of each pass, as ``rich.progress.track`` does.

    Returns:
        The maps, by the modules' names in the base model; their shapes are those of :class:`LinearMap`.

    Raises:
        InputError: if there is too little text, or the adapter cannot be made linear: it adapts convolutions, an
            intercept has no bias to go to, or its units depend on each other (topk) and there is no text.
    """
    units = active_units(model)
    layers = {name: layer for name, layer in model.get_base_model().named_modules() if name in units}
    intercepts = {name: _has_intercept(name, layer, units[name], affine) for name, layer in layers.items()}
    maps = {name: _closed_form(layer, units[name]) for name, layer in layers.items()}
    open_ones = {name: layer for name, layer in layers.items() if maps[name] is None}
    if batches is None:
        fitted = {name: _gaussian(name, units[name]) for name in open_ones}
    else:
        _check_rows(batches)
        folds = collect(model, open_ones, units, batches, progress, memory) if open_ones else {}
        _check_tokens(units, open_ones, folds)
        fitted = {name: fit(units[name].A, units[name].B, *folds[name], affine=intercepts[name]) for name in open_ones}
    return {name: fitted.get(name) or linear_map for name, linear_map in maps.items()}  # type: ignore[misc]


def _has_intercept(name: str, layer: MonoLoraLayer, units: Units, affine: bool | None) -> bool:
    if units.A.dim() > 2:
        raise InputError(
            f"{name} is a convolution; merges support linear layers and embeddings. Keep the adapter beside its base."
        )
    base = layer.get_base_layer()
    has_bias = not isinstance(base, nn.Embedding) and base.bias is not None
    if affine and not has_bias:
        raise InputError(f"{name} has no bias that an intercept could go to. Leave the intercept out.")
    return has_bias and affine is not False


def _closed_form(layer: MonoLoraLayer, units: Units) -> LinearMap | None:
    """The exact map, where there is one; never a view of the adapter."""
    A = units.A.to(torch.float32, copy=True)
    if isinstance(layer.get_base_layer(), nn.Embedding):
        return LinearMap(units.activate(A, dim=0))
    return LinearMap(A) if activation_named(units.activation).is_linear else None


def _gaussian(name: str, units: Units) -> LinearMap:
    if activation_named(units.activation).over_units:
        raise InputError(
            f"{name} has {units.activation} units, for which there is no closed form. Give calibration text."
        )
    return LinearMap(units.A.float() * gaussian_slopes(units)[:, None])


def gaussian_slopes(units: Units) -> torch.Tensor:
    """The best linear map of each unit on its own pre-activation, ``E[act(z) z] / E[z²]``, ``(R,)`` in float32.

    By integration over ``z`` of mean 0 and variance ``‖A_i‖²``, which standard Gaussian inputs give it. Where the
    activation is scale-free the variance does not matter: 1/2 under ReLU.

    Args:
        units: of a linear layer, and each by itself (not ``over_units``).
    """
    u_G1 = GAUSSIAN_GRID[:, None]
    sigma_R = units.A.double().norm(dim=1).cpu()
    weight_G1 = u_G1 * torch.exp(-u_G1.square() / 2)
    h_GR = units._replace(threshold=None if units.threshold is None else units.threshold.double()).activate(
        u_G1 * sigma_R
    )
    slope_R = (weight_G1 * h_GR).sum(0) / (weight_G1 * u_G1).sum() / sigma_R
    return slope_R.where(sigma_R > 0, 0.0).float().to(units.A.device)


def _check_rows(batches: Sequence[Batch]) -> None:
    rows = sum(len(next(iter(batch.values()))) for batch in batches)
    if rows < 2:
        raise InputError(f"There is {rows} calibration text; at least 2 are needed, to hold one out of the fit.")


def _check_tokens(units: Mapping[str, Units], wanted: Mapping[str, MonoLoraLayer], folds: Mapping[str, Folds]) -> None:
    for name in wanted:
        tokens = folds[name].seen.tokens + folds[name].held_out.tokens if name in folds else 0
        needed = TOKENS_PER_INPUT * units[name].A.shape[1]
        if tokens < needed:
            raise InputError(
                f"The calibration text brings {tokens:,} tokens to {name}; {needed - tokens:,} more are needed "
                f"({TOKENS_PER_INPUT} for each of its {units[name].A.shape[1]:,} inputs). Give more or longer texts."
            )
