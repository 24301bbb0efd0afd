"""Second moments of an adapted layer's inputs and units: what the linear merge is solved from.

No activation is kept: each batch adds its products to a few matrices. Inputs carry a constant 1 at their end, which
makes room for an intercept. All in float64: in directions that the inputs hardly take, the fit divides by next to
nothing, and the rounding of float32 products would come out larger than A itself.

Shapes: T tokens, I inputs of a layer (``I1`` with the constant), R units of its adapter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


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
