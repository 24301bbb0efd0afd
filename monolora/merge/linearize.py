"""The best linear map in place of each adapted layer's ``act(A x)``.

``B act(A x)`` has no dense weight. Over a distribution of inputs it has a best linear approximation, and that one keeps
B and the rank: the dense weight is ``W + s B A'``, and the same thing is an ordinary LoRA adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from peft import PeftModel
from torch import nn

from monolora.activations import activate
from monolora.errors import InputError
from monolora.layer import MonoLoraLayer
from monolora.merge.calibration import Batch, Folds, Progress, collect
from monolora.merge.least_squares import LinearMap, fit
from monolora.merge.unload import Units, active_units

# With fewer calibration tokens than this for each input of a layer, too much of the map is left to the ridge.
TOKENS_PER_INPUT = 4
# E[act'(z)] for zero-mean Gaussian z: what the best linear map is A times of.
GAUSSIAN_SLOPES = {"relu": 0.5, "identity": 1.0, "softplus": 0.5}


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
        batches: arguments of its forward (``input_ids``, ``attention_mask``). None for the closed form for zero-mean
            Gaussian pre-activations, ``A' = A / 2`` under ReLU.
        affine: whether to fit an intercept, which becomes a bias; by default where the base layer has a bias.
        memory: bytes for the second moments; by default half of what is free. Where they need more, the text is run
            through the model several times, for a part of the layers each.
        progress: goes around the batches of each pass, as ``rich.progress.track`` does.

    Returns:
        The maps, by the modules' names in the base model; their shapes are those of :class:`LinearMap`.

    Raises:
        InputError: if there is too little text, or the adapter cannot be made linear: it adapts convolutions, an
            intercept has no bias to go to, or its units are topk and there is no text.
    """
    units = active_units(model)
    layers = {name: layer for name, layer in model.get_base_model().named_modules() if name in units}
    intercepts = {name: _has_intercept(name, layer, units[name], affine) for name, layer in layers.items()}
    maps = {name: _closed_form(layer, units[name]) for name, layer in layers.items()}
    open_ones = {name: layer for name, layer in layers.items() if maps[name] is None}
    if batches is None:
        found = {name: _gaussian(name, units[name]) for name in open_ones}
    else:
        _check_rows(batches)
        folds = collect(model, open_ones, units, batches, progress, memory) if open_ones else {}
        _check_tokens(units, open_ones, folds)
        found = {name: fit(units[name].A, units[name].B, *folds[name], affine=intercepts[name]) for name in open_ones}
    return {name: found.get(name) or linear_map for name, linear_map in maps.items()}  # type: ignore[misc]


def _has_intercept(name: str, layer: MonoLoraLayer, units: Units, affine: bool | None) -> bool:
    if units.A.dim() > 2:
        raise InputError(
            f"{name} is a convolution, and merges know linear layers and embeddings. Keep the adapter beside its base."
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
        return LinearMap(activate(A, units.activation, dim=0))
    return LinearMap(A) if units.activation == "identity" else None


def _gaussian(name: str, units: Units) -> LinearMap:
    slope = GAUSSIAN_SLOPES.get(units.activation)
    if slope is None:
        raise InputError(
            f"{name} has {units.activation} units, for which there is no closed form. Give calibration text."
        )
    return LinearMap(units.A.float() * slope)


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
