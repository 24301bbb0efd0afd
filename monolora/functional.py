"""The MonoLoRA linear map: the three-line truth and a fused version of it.

Shapes: T tokens (all leading dimensions of x flattened), I inputs, O outputs, R units.
    x_TI, weight_OI, A_RI, B_OR, h_TR (units after the activation), y_TO
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from monolora.activations import activate

FUSED_ACTIVATIONS = ("relu", "identity")


def monolora_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    activation: str = "relu",
) -> torch.Tensor:
    """``y = W x + b + s B act(A x)`` (paper, eq. 5), written as it is read.

    Args:
        x: shape ``(..., in_features)``.
        weight: base weight, ``(out_features, in_features)``.
        bias: base bias, ``(out_features,)`` or None.
        A: ``(r, in_features)``.
        B: ``(out_features, r)``.
        scaling: s.
        activation: see :mod:`monolora.activations`.

    Returns:
        Shape ``(..., out_features)``.
    """
    y = F.linear(x, weight, bias)
    h = activate(F.linear(x, A), activation)
    return y + scaling * F.linear(h, B)


class _FusedMonoLora(torch.autograd.Function):
    """Forward and backward without an output-sized temporary for the adapter.

    The forward adds ``s B h`` into ``y`` in the product itself; it keeps x and h, and h > 0 is the mask
    of the ReLU. The backward likewise adds ``gh A`` into ``g W``.

    B is taken transposed, its rows as long as y's: the layout in which a CPU's libraries are fastest in the r-wide
    products. That copy, which also casts and scales it, is small beside one product.
    """

    @staticmethod
    def forward(ctx: Any, x, weight, bias, A, B, scaling: float, activation: str):
        A_RI = A.to(x.dtype)
        sBt_RO = torch.mul(B.t(), scaling, out=B.new_empty(B.shape[::-1], dtype=x.dtype))
        x_TI = x.reshape(-1, x.shape[-1])
        y_TO = F.linear(x_TI, weight, bias)
        h_TR = F.linear(x_TI, A_RI)
        if activation == "relu":
            h_TR.relu_()
        y_TO.addmm_(h_TR, sBt_RO)
        ctx.save_for_backward(x, weight, A_RI, sBt_RO, h_TR)
        ctx.scaling, ctx.activation, ctx.dtypes = scaling, activation, (A.dtype, B.dtype)
        ctx.mark_non_differentiable(h_TR)
        ctx.set_materialize_grads(False)
        return y_TO.view(*x.shape[:-1], y_TO.shape[-1]), h_TR

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g, _):
        if g is None:
            return (None,) * 7
        x, weight, A_RI, sBt_RO, h_TR = ctx.saved_tensors
        A_dtype, B_dtype = ctx.dtypes
        needs_x, needs_weight, needs_bias, needs_A, needs_B = ctx.needs_input_grad[:5]
        g_TO = g.reshape(-1, g.shape[-1])
        x_TI = x.reshape(-1, x.shape[-1])
        gx = gW = gb = gA = gB = None
        if needs_x or needs_A:
            gh_TR = F.linear(g_TO, sBt_RO)
            if ctx.activation == "relu":
                gh_TR = torch.ops.aten.threshold_backward(gh_TR, h_TR, 0)
        if needs_x:
            gx = torch.mm(g_TO, weight).addmm_(gh_TR, A_RI).view(x.shape)
        if needs_A:
            gA = torch.mm(gh_TR.t(), x_TI).to(A_dtype)
        if needs_B:
            gBt_RO = torch.mm(h_TR.t(), g_TO)
            gB = torch.mul(gBt_RO.t(), ctx.scaling, out=gBt_RO.new_empty(gBt_RO.shape[::-1], dtype=B_dtype))
        if needs_weight:
            gW = torch.mm(g_TO.t(), x_TI)
        if needs_bias:
            gb = g_TO.sum(0)
        return gx, gW, gb, gA, gB, None, None


def monolora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    activation: str = "relu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`monolora_reference` in one autograd node, for dense weights of the dtype of ``x``.

    A and B may be of a wider dtype (float32 masters of a bfloat16 base); they are cast, x is not.

    Args:
        x: shape ``(..., in_features)``.
        weight, bias, A, B, scaling: as in :func:`monolora_reference`.
        activation: ``"relu"`` or ``"identity"``.

    Returns:
        y, shape ``(..., out_features)``, and the units ``act(A x)``, shape ``(tokens, r)``, which carry no gradient.

    Raises:
        ValueError: for any other activation.
        RuntimeError: on a second derivative; take :func:`monolora_reference` for that.
    """
    if activation not in FUSED_ACTIVATIONS:
        raise ValueError(f"The fused path knows {FUSED_ACTIVATIONS}, not {activation!r}; use monolora_reference.")
    return _FusedMonoLora.apply(x, weight, bias, A, B, scaling, activation)
