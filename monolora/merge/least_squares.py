"""Second moments of an adapted layer's inputs and units: what the linear merge is solved from.

No activation is kept: each batch adds its products to a few matrices. Inputs carry a constant 1 at their end, which
makes room for an intercept. All in float64: in directions that the inputs hardly take, the fit divides by next to
nothing, and the rounding of float32 products would come out larger than A itself.

Shapes: T tokens, I inputs of a layer (``I1`` with the constant), R units of its adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from monolora.errors import InputError
from monolora.layer import MonoLoraLayer
from monolora.merge.deltas import merge_on_disk, plus
from monolora.merge.unload import Units, active_units, dequantized, unload
from monolora.model_files import save_model


class InputSums:
    """Sums of ``x xᵀ`` over tokens, for one input tensor; several layers may read it."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.tokens = 0
        self.xx = torch.zeros(width + 1, width + 1, dtype=torch.float64, device=device)

    def add(self, x_TI1: torch.Tensor) -> None:
        self.tokens += x_TI1.shape[0]
        self.xx += x_TI1.T @ x_TI1


class UnitSums:
    """Sums of ``h xᵀ`` and ``h hᵀ`` over tokens, for the units of one layer."""

    def __init__(self, units: int, width: int, device: torch.device) -> None:
        self.hx = torch.zeros(units, width + 1, dtype=torch.float64, device=device)
        self.hh = torch.zeros(units, units, dtype=torch.float64, device=device)

    def add(self, h_TR: torch.Tensor, x_TI1: torch.Tensor) -> None:
        self.hx += h_TR.T @ x_TI1
        self.hh += h_TR.T @ h_TR


class Moments(NamedTuple):
    """Expectations over tokens, for one layer; float64.

    Attributes:
        tokens: how many tokens they are of.
        x: ``E[x]``, shape ``(I,)``.
        h: ``E[h]``, shape ``(R,)``.
        xx: ``E[x xᵀ]``, shape ``(I, I)``.
        hx: ``E[h xᵀ]``, shape ``(R, I)``.
        hh: ``E[h hᵀ]``, shape ``(R, R)``.
    """

    tokens: int
    x: torch.Tensor
    h: torch.Tensor
    xx: torch.Tensor
    hx: torch.Tensor
    hh: torch.Tensor

    @classmethod
    def of(cls, inputs: InputSums, units: UnitSums) -> Moments:
        """From sums over the same tokens."""
        xx, hx, n = inputs.xx / inputs.tokens, units.hx / inputs.tokens, inputs.tokens
        return cls(n, xx[:-1, -1], hx[:, -1], xx[:-1, :-1], hx[:, :-1], units.hh / n)

    def pooled(self, other: Moments) -> Moments:
        """The moments over the tokens of both."""
        n = self.tokens + other.tokens
        mixed = (a * (self.tokens / n) + b * (other.tokens / n) for a, b in zip(self[1:], other[1:], strict=True))
        return Moments(n, *mixed)

    def about(self, x0_I: torch.Tensor, h0_R: torch.Tensor) -> Moments:
        """The moments of ``x - x0`` and ``h - h0``."""
        x, h = self.x, self.h
        return Moments(
            self.tokens,
            x - x0_I,
            h - h0_R,
            self.xx - torch.outer(x, x0_I) - torch.outer(x0_I, x) + torch.outer(x0_I, x0_I),
            self.hx - torch.outer(h, x0_I) - torch.outer(h0_R, x) + torch.outer(h0_R, x0_I),
            self.hh - torch.outer(h, h0_R) - torch.outer(h0_R, h) + torch.outer(h0_R, h0_R),
        )


# Ridges tried, as multiples of the mean eigenvalue of E[x xᵀ].
RIDGES = tuple(10.0**power for power in range(-8, 3))
# Inputs rounded to float32 have eigenvalues to about this share of the largest one; less is noise.
RESOLUTION = 1e-8


class LinearMap(NamedTuple):
    """``A' x + intercept`` in place of ``act(A x)``.

    Attributes:
        A: shape ``(R, I)``, float32.
        intercept: shape ``(R,)``, float32, or None.
        ridge: the ridge as a multiple of the mean eigenvalue of ``E[x xᵀ]``; None for closed forms.
        ridge_raised: whether smaller ridges were left out because ``E[x xᵀ]`` is singular.
        error: ``‖B(A'x + c) - B h‖ / ‖B h‖`` on tokens held out of the fit; None for closed forms.
        tokens: calibration tokens, the held-out ones included.
    """

    A: torch.Tensor
    intercept: torch.Tensor | None = None
    ridge: float | None = None
    ridge_raised: bool = False
    error: float | None = None
    tokens: int = 0


def fit(A: torch.Tensor, B: torch.Tensor, seen: Moments, held_out: Moments, affine: bool) -> LinearMap:
    """The linear map with the ridge that does best on the held-out tokens, fitted again to all tokens.

    Args:
        A: the adapter's first matrix, ``(R, I)``.
        B: its second, ``(O, R)``; it weighs the units' errors.
        seen: moments of the tokens to fit.
        held_out: moments of the tokens to choose the ridge by.
        affine: whether to fit an intercept.
    """
    A64, B64 = A.to(seen.xx), B.to(seen.xx)
    ridge, raised, error = _choose_ridge(A64, B64, seen, held_out, affine)
    both = seen.pooled(held_out)
    centre_x, centre_h = _centre(both, affine)
    centred = both.about(centre_x, centre_h)
    mean_eigenvalue = _mean_eigenvalue(centred)
    prior = _own_slopes(A64, centred)
    ridged = centred.xx + ridge * mean_eigenvalue * torch.eye(len(centred.xx)).to(centred.xx)
    fitted = prior + torch.linalg.solve(ridged, (centred.hx - prior @ centred.xx).T).T
    intercept = (centre_h - fitted @ centre_x).float() if affine else None
    return LinearMap(fitted.float(), intercept, ridge, raised, error, both.tokens)


def _choose_ridge(
    A: torch.Tensor, B: torch.Tensor, seen: Moments, held_out: Moments, affine: bool
) -> tuple[float, bool, float]:
    """The best of ``RIDGES``, whether some had to be left out, and the held-out error it gives."""
    weights_RR = B.T @ B
    size = float((weights_RR * held_out.hh).sum())
    centre = _centre(seen, affine)
    seen, held_out = seen.about(*centre), held_out.about(*centre)
    prior, mean_eigenvalue = _own_slopes(A, seen), _mean_eigenvalue(seen)
    eigenvalues_I, basis_II = torch.linalg.eigh(seen.xx)
    eigenvalues_I = eigenvalues_I.clamp(min=0)
    # Everything below lives in the eigenvectors' basis, where a ridge is one addition to the eigenvalues.
    rest = (seen.hx - prior @ seen.xx) @ basis_II
    rest_held_out = (held_out.hx - prior @ held_out.xx) @ basis_II
    xx_held_out = basis_II.T @ held_out.xx @ basis_II
    hh_held_out = (
        held_out.hh - prior @ held_out.hx.T - held_out.hx @ prior.T + prior @ held_out.xx @ prior.T
    )  # of what the prior leaves open

    def error(ridge: float) -> float:
        slope = rest / (eigenvalues_I + ridge * mean_eigenvalue)
        left = hh_held_out - slope @ rest_held_out.T - rest_held_out @ slope.T + slope @ xx_held_out @ slope.T
        return float((weights_RR * left).sum().clamp(min=0))

    floor = RESOLUTION * float(eigenvalues_I[-1])
    usable = [r for r in RIDGES if float(eigenvalues_I[0]) + r * mean_eigenvalue >= floor]
    best = min(usable, key=error)
    return best, len(usable) < len(RIDGES), (error(best) / size) ** 0.5 if size > 0 else 0.0


def _centre(moments: Moments, affine: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The origins of x and h: their means for a fit with intercept, else zero."""
    return (moments.x, moments.h) if affine else (torch.zeros_like(moments.x), torch.zeros_like(moments.h))


def _own_slopes(A: torch.Tensor, moments: Moments) -> torch.Tensor:
    """``diag(p) A``, p the least-squares slope of each unit on its own pre-activation ``z = A x``."""
    zz_R = ((A @ moments.xx) * A).sum(1)
    hz_R = (moments.hx * A).sum(1)
    p_R = torch.where(zz_R > 0, hz_R / zz_R.clamp(min=torch.finfo(zz_R.dtype).tiny), 0.0)
    return p_R[:, None] * A


def _mean_eigenvalue(moments: Moments) -> float:
    """Of ``E[x xᵀ]``; 1 where all inputs were zero, so that a ridge stays a ridge."""
    return float(moments.xx.diagonal().mean()) or 1.0


def export_dense(
    model: PeftModel,
    maps: Mapping[str, LinearMap],
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write a checkpoint that every loader reads: config, generation config, sharded safetensors, tokenizer.

    Args:
        model: the adapted model; it is consumed. A quantized base is dequantized.
        maps: as :func:`~monolora.merge.linearize` gives them for this model.
        folder: where to write.
        tokenizer: saved beside it, with its chat template.
        max_shard_size: as for ``save_pretrained``.

    Raises:
        InputError: if an adapter's trained bias on B has no bias of the base layer to go to, or a layer that shares its
            weight with another one is offloaded.
    """
    units = active_units(model)
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    dequantized(base)
    layers = {name: layer for name, layer in base.named_modules() if name in units}
    for name, layer in layers.items():
        _check_bias(name, layer, units[name])
    shared = _shared_weights(base)
    for name, layer in layers.items():
        _merge(name, layer.get_base_layer(), units[name], maps[name], shared)
    base, _ = unload(model)
    save_model(base, folder, tokenizer, max_shard_size=max_shard_size)


def dense_delta(units: Units, linear_map: LinearMap) -> torch.Tensor:
    """``s B A'``, shape ``(out, in)``, float32."""
    return units.scaling * (units.B.float() @ linear_map.A.to(units.B.device))


def dense_bias(units: Units, linear_map: LinearMap) -> torch.Tensor | None:
    """``s (B c + b)``, shape ``(out,)``, float32, of an intercept c and a trained bias b on B; None without either."""
    parts = [units.bias.float()] if units.bias is not None else []
    if linear_map.intercept is not None:
        parts.append(units.B.float() @ linear_map.intercept.to(units.B.device))
    return units.scaling * torch.stack(parts).sum(0) if parts else None


def _check_bias(name: str, layer: MonoLoraLayer, units: Units) -> None:
    if units.bias is not None and layer.get_base_layer().bias is None:
        raise InputError(
            f"The adapter trained a bias on B (lora_bias), and {name} has no bias that it could go to in a stock "
            "checkpoint. Merge exactly, or as a LoRA adapter."
        )


def _shared_weights(model: nn.Module) -> set[int]:
    """Storage of the weights that several modules share (tied embeddings)."""
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _merge(name: str, base: nn.Module, units: Units, linear_map: LinearMap, shared: set[int]) -> None:
    """Add delta and bias to a base layer, in float32, rounded once."""
    weight, bias = base.weight, dense_bias(units, linear_map)
    assert isinstance(weight, nn.Parameter)

    def delta() -> torch.Tensor:
        delta = dense_delta(units, linear_map)
        return delta.T if isinstance(base, (Conv1D, nn.Embedding)) else delta

    additions = {"weight": delta} | ({} if bias is None else {"bias": lambda: bias})
    if weight.device.type == "meta":
        if id(weight) in shared:
            raise InputError(f"{name} shares its weight with another layer, and is not in memory. Raise --max-memory.")
        merge_on_disk(base, additions)
        return
    if id(weight) in shared:
        base.weight = nn.Parameter(weight.data, requires_grad=weight.requires_grad)
    for kind, added in additions.items():
        parameter = base.get_parameter(kind)
        parameter.data = plus(parameter.data, added())
