"""The softmax, into memory that is there."""

from __future__ import annotations

import math

import torch

_LOG2_E = math.log2(math.e)


def softmax_into(out: torch.Tensor, logits: torch.Tensor, dim: int, divisor: int) -> None:
    """``softmax(logits, dim) / divisor``, by powers of two: on a CPU they are several times faster than those of e.

    Args:
        out: of the shape of ``logits``; overwritten.
        logits: kept.
        dim: that sums to ``1 / divisor`` afterwards.
        divisor: the size of a batch, for gradients of its mean.
    """
    most = logits.amax(dim, keepdim=True)
    torch.add(most.mul_(-_LOG2_E), logits, alpha=_LOG2_E, out=out).exp2_()
    out.div_(out.sum(dim, keepdim=True).mul_(divisor))
