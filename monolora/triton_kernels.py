"""The MonoLoRA linear map on a GPU, with Triton kernels for what is as narrow as the rank.

``shrink`` reads x once and writes the units, with bounds and scale on the way out; ``expand_add_`` reads and writes y
once. The products with W, and the gradients of A and B, stay the library's. Taken with ``MONOLORA_TRITON=1``: no GPU
was at hand yet to measure whether they are faster. Triton comes with torch on GPUs; its interpreter runs the same code
on a CPU (``TRITON_INTERPRET=1`` before the import).

Shapes as in :mod:`monolora.functional`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from monolora.activations import LINEAR_BOUNDS

TOKENS, WIDTH = 32, 64  # of a tile
LEAST_RANK = 16  # of a matrix unit's operand; narrower ones are filled up with zeros


def shrink(
    x_TI: torch.Tensor,
    A_RI: torch.Tensor,
    bounds: tuple[float, float] = LINEAR_BOUNDS,
    units_TR: torch.Tensor | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """``scale · x Aᵀ``, clamped to the bounds, or zero where the units are at a bound; summed up in float32.

    Args:
        x_TI: tokens, any strides.
        A_RI: any strides, of the dtype of x.
        bounds: of the units.
        units_TR: contiguous, clamped before: the result is then the gradient in what they were; None for the units.
        scale: a factor.

    Returns:
        Shape ``(T, R)``, of the dtype of x.
    """
    (n_tokens, n_inputs), n_units = x_TI.shape, A_RI.shape[0]
    h_TR = x_TI.new_empty(n_tokens, n_units)
    low, high = bounds
    grid = (triton.cdiv(n_tokens, TOKENS),)
    _shrink[grid](
        x_TI, A_RI, h_TR if units_TR is None else units_TR, h_TR, n_tokens, n_inputs, n_units, scale, low, high,
        *x_TI.stride(), *A_RI.stride(),
        LOW=low > -math.inf, HIGH=high < math.inf, MASKED=units_TR is not None,
        BT=TOKENS, BI=WIDTH, BR=_padded(n_units),
    )  # fmt: skip
    return h_TR


def expand_add_(y_TO: torch.Tensor, h_TR: torch.Tensor, B_OR: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """``y += scale · h Bᵀ`` in place, summed up in float32.

    Args:
        y_TO: contiguous.
        h_TR: contiguous, of the dtype of y.
        B_OR: any strides, of the dtype of y.
        scale: a factor.
    """
    (n_tokens, n_outputs), n_units = y_TO.shape, h_TR.shape[1]
    grid = (triton.cdiv(n_tokens, TOKENS), triton.cdiv(n_outputs, WIDTH))
    _expand_add[grid](
        y_TO, h_TR, B_OR, n_tokens, n_outputs, n_units, scale, *B_OR.stride(), BT=TOKENS, BO=WIDTH, BR=_padded(n_units)
    )
    return y_TO


class TritonMonoLora(torch.autograd.Function):
    """``(x, weight, bias, A, B, scaling, bounds) -> (y, h)`` with x ``(T, I)`` and all of its dtype."""

    @staticmethod
    def forward(ctx: Any, x_TI, weight, bias, A_RI, B_OR, scaling: float, bounds: tuple[float, float]):
        y_TO = F.linear(x_TI, weight, bias)
        h_TR = shrink(x_TI, A_RI, bounds)
        expand_add_(y_TO, h_TR, B_OR, scaling)
        ctx.save_for_backward(x_TI, weight, A_RI, B_OR, h_TR)
        ctx.scaling, ctx.bounds = scaling, bounds
        ctx.set_materialize_grads(False)
        return y_TO, h_TR

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_TO, g_units_TR):
        x_TI, weight, A_RI, B_OR, h_TR = ctx.saved_tensors
        if g_TO is None:
            g_TO = x_TI.new_zeros(len(x_TI), len(weight))
        needs_x, needs_weight, needs_bias, needs_A, needs_B = ctx.needs_input_grad[:5]
        gx = gW = gb = gA = gB = None
        if needs_x or needs_A:
            gh_TR = shrink(g_TO, B_OR.t(), ctx.bounds, h_TR, ctx.scaling)
            if g_units_TR is not None:
                low, high = ctx.bounds
                gh_TR = gh_TR + torch.where((h_TR > low) & (h_TR < high), g_units_TR, 0.0)
        if needs_x:
            gx = expand_add_(torch.mm(g_TO, weight), gh_TR, A_RI.t())
        if needs_weight:
            gW = torch.mm(g_TO.t(), x_TI)
        if needs_bias:
            gb = g_TO.sum(0)
        if needs_A:
            gA = torch.mm(gh_TR.t(), x_TI)
        if needs_B:
            gB = torch.addmm(B_OR, g_TO.t(), h_TR, beta=0, alpha=ctx.scaling)
        return gx, gW, gb, gA, gB, None, None


def _padded(rank: int) -> int:
    return max(LEAST_RANK, triton.next_power_of_2(rank))


@triton.jit
def _shrink(
    x, A, units, h, n_tokens, n_inputs, n_units, scale, low, high, x_t, x_i, A_r, A_i,
    LOW: tl.constexpr, HIGH: tl.constexpr, MASKED: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    t = (tl.program_id(0) * BT + tl.arange(0, BT)[:, None]).to(tl.int64)
    r = tl.arange(0, BR)[None, :]
    sums = tl.full((BT, BR), 0.0, dtype=tl.float32)
    for start in range(0, n_inputs, BI):
        i = start + tl.arange(0, BI)
        x_tile = tl.load(x + t * x_t + i[None, :] * x_i, mask=(t < n_tokens) & (i[None, :] < n_inputs), other=0.0)
        A_tile = tl.load(A + r * A_r + i[:, None] * A_i, mask=(r < n_units) & (i[:, None] < n_inputs), other=0.0)
        sums = tl.dot(x_tile, A_tile, sums, input_precision="ieee")
    sums *= scale
    inside = (t < n_tokens) & (r < n_units)
    if MASKED and (LOW or HIGH):
        unit = tl.load(units + t * n_units + r, mask=inside, other=0.0)
    if LOW:
        sums = tl.where(unit > low, sums, 0.0) if MASKED else tl.maximum(sums, low)
    if HIGH:
        sums = tl.where(unit < high, sums, 0.0) if MASKED else tl.minimum(sums, high)
    tl.store(h + t * n_units + r, sums.to(h.dtype.element_ty), mask=inside)


@triton.jit
def _expand_add(
    y, h, B, n_tokens, n_outputs, n_units, scale, B_o, B_r, BT: tl.constexpr, BO: tl.constexpr, BR: tl.constexpr
):
    t = (tl.program_id(0) * BT + tl.arange(0, BT)[:, None]).to(tl.int64)
    o = tl.program_id(1) * BO + tl.arange(0, BO)[None, :]
    r = tl.arange(0, BR)
    h_tile = tl.load(h + t * n_units + r[None, :], mask=(t < n_tokens) & (r[None, :] < n_units), other=0.0)
    B_tile = tl.load(B + o * B_o + r[:, None] * B_r, mask=(o < n_outputs) & (r[:, None] < n_units), other=0.0)
    inside = (t < n_tokens) & (o < n_outputs)
    at = y + t * n_outputs + o
    sums = tl.load(at, mask=inside, other=0.0).to(tl.float32) + scale * tl.dot(h_tile, B_tile, input_precision="ieee")
    tl.store(at, sums.to(y.dtype.element_ty), mask=inside)
