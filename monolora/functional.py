"""The MonoLoRA linear map: a three-line reference and a fused version of it.

Shapes: T tokens (all leading dimensions of x flattened), I inputs, O outputs, R units.
    x_TI, weight_OI, A_RI, B_OR, h_TR (units after the activation), y_TO
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F

from monolora.activations import DEFAULT, Activation, activate, activation_named


def monolora_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    activation: str = DEFAULT,
    threshold: torch.Tensor | None = None,
) -> torch.Tensor:
    """``y = W x + b + s B act(A x)`` (paper, eq. 5): the reference for the fused path.

    Args:
        x: shape ``(..., in_features)``.
        weight: base weight, ``(out_features, in_features)``.
        bias: base bias, ``(out_features,)`` or None.
        A: ``(r, in_features)``.
        B: ``(out_features, r)``.
        scaling: s.
        activation: see :mod:`monolora.activations`.
        threshold: of the units, ``(r, 1)``, where the activation has one.

    Returns:
        Shape ``(..., out_features)``.
    """
    y = F.linear(x, weight, bias)
    h = activate(F.linear(x, A), activation, threshold=threshold)
    return y + scaling * F.linear(h, B)


def monolora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    activation: str = DEFAULT,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`monolora_reference` without a temporary as large as x or y, for dense weights of the dtype of ``x``.

    A and B may be of a wider dtype (float32 masters of a bfloat16 base); they are cast, x is not.

    Args:
        x: shape ``(..., in_features)``.
        weight, bias, A, B, scaling: as in :func:`monolora_reference`.
        activation: one with a ``gradient`` (see :class:`~monolora.activations.Activation`).

    Returns:
        y, shape ``(..., out_features)``, and the units ``act(A x)``, shape ``(tokens, r)``.

    Raises:
        ValueError: for any other activation.
    """
    kind = activation_named(activation)
    if kind.gradient is None:
        raise ValueError(f"The fused path does not know the gradient of {activation!r}; use monolora_reference.")
    A_RI, Bt_RO = A.to(x.dtype), B.to(x.dtype).t()
    if kind.bounds is not None and takes_triton(x):
        from monolora.triton_kernels import TritonMonoLora

        x_TI = x.reshape(-1, x.shape[-1])
        y_TO, h_TR = TritonMonoLora.apply(x_TI, weight, bias, A_RI, Bt_RO.t(), scaling, kind.bounds)
        return y_TO.view(*x.shape[:-1], y_TO.shape[-1]), h_TR
    if x.device.type == "cpu" and x.dtype == torch.float32:
        Bt_RO = Bt_RO.contiguous()  # float32 products are up to 2.5 times as fast with B's rows as long as y's
    y_TO, h_TR = _LinearAndUnits.apply(x.reshape(-1, x.shape[-1]), weight, bias, A_RI, kind)
    y_TO.addmm_(h_TR, Bt_RO, alpha=scaling)
    return y_TO.view(*x.shape[:-1], y_TO.shape[-1]), h_TR


def add_expanded(y: torch.Tensor, h: torch.Tensor, B: torch.Tensor, scaling: float) -> torch.Tensor:
    """``y + s B h`` in one product, out of place, if y and h are of one dtype; else by separate operations.

    Args:
        y: shape ``(..., out_features)``.
        h: units, ``(..., r)``.
        B: ``(out_features, r)``, of the dtype of h, except under autocast.
        scaling: s.
    """
    if h.dtype != y.dtype:
        return y + F.linear(h, B) * scaling
    y_TO, h_TR = y.reshape(-1, y.shape[-1]), h.reshape(-1, h.shape[-1])
    return torch.addmm(y_TO, h_TR, B.t(), alpha=scaling).view(y.shape)


def takes_triton(x: torch.Tensor) -> bool:
    """Whether ``MONOLORA_TRITON=1`` asks for the kernels of :mod:`monolora.triton_kernels` on a GPU."""
    wanted = x.is_cuda and os.environ.get("MONOLORA_TRITON") == "1"
    return wanted and x.dtype != torch.float64 and x.numel() > 0


class _LinearAndUnits(torch.autograd.Function):
    """``W x + b`` and ``act(A x)`` in one node: two nodes would each make a gradient as large as x, then add them.

    It saves x and h, from which the activation has its gradient. The backward can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, x_TI, weight, bias, A_RI, activation: Activation):
        y_TO = F.linear(x_TI, weight, bias)
        h_TR = activation(F.linear(x_TI, A_RI))
        ctx.save_for_backward(x_TI, weight, A_RI, h_TR)
        ctx.gradient = activation.gradient
        ctx.set_materialize_grads(False)
        return y_TO, h_TR

    @staticmethod
    def backward(ctx: Any, g_TO, gh_TR):
        x_TI, weight, A_RI, h_TR = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_A, _ = ctx.needs_input_grad
        gx = gW = gb = gA = None
        if gh_TR is not None:
            gh_TR = ctx.gradient(gh_TR, h_TR)
        if needs_x and gh_TR is not None:
            gx = torch.mm(gh_TR, A_RI)
        if needs_x and g_TO is not None:
            gx = torch.mm(g_TO, weight) if gx is None else gx.addmm_(g_TO, weight)
        if needs_A and gh_TR is not None:
            gA = torch.mm(gh_TR.t(), x_TI)
        if needs_weight and g_TO is not None:
            gW = torch.mm(g_TO.t(), x_TI)
        if needs_bias and g_TO is not None:
            gb = g_TO.sum(0)
        return gx, gW, gb, gA, None
