"""Bins for activations that are the same for every unit and data set, and need no range to be known before.

Each octave of a size is cut into 2^bits equal parts: the bin of a float is then read off its exponent and the first
bits of its fraction, and no logarithm is taken. Bins are in ascending order of the activation; exact zeros have a bin
of their own.

Shapes: E bins.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

LOWEST, HIGHEST = 2.0**-14, 2.0**10  # what is below (and not 0) or above is in the first or last bin of its sign
OCTAVES = 24
_FRACTION = 23  # bits of a float32's fraction


class Bins(NamedTuple):
    """How sizes are cut.

    Attributes:
        signed: whether there are bins for negative values.
        bits: of the fraction that count.
    """

    signed: bool
    bits: int

    @property
    def sizes(self) -> int:
        """Bins of one sign."""
        return OCTAVES << self.bits

    @property
    def number(self) -> int:
        """E: bins of each sign, and that of zero."""
        return (2 if self.signed else 1) * self.sizes + 1

    @property
    def zero(self) -> int:
        """The place of the bin of exact zeros."""
        return self.sizes if self.signed else 0

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """The bin of each value.

        Args:
            values: float32, of any shape; never negative without bins for that.

        Returns:
            int32, of the same shape.
        """
        size = (values.abs().view(torch.int32) >> self._shift).sub_(self._first - 1).clamp_(1, self.sizes)
        size.masked_fill_(values == 0, 0)
        return torch.where(values < 0, self.sizes - size, self.sizes + size) if self.signed else size

    def edges(self) -> NDArray[np.float64]:
        """The E + 1 edges of the bins: a bin holds sizes from its inner edge (nearer to 0) up to its outer one.

        Zero's bin ends at the smallest float; the outermost edges are infinite.
        """
        bits = np.arange(self._first + 1, self._first + self.sizes, dtype=np.int32) << self._shift
        tiny = np.finfo(np.float32).smallest_subnormal.astype(np.float64)
        upper = np.concatenate([[tiny], bits.view(np.float32).astype(np.float64), [np.inf]])
        return np.concatenate([-upper[::-1], upper]) if self.signed else np.concatenate([[0.0], upper])

    @property
    def _shift(self) -> int:
        return _FRACTION - self.bits

    @property
    def _first(self) -> int:
        return int(np.float32(LOWEST).view(np.int32)) >> self._shift


def merged(counts_UE: NDArray[np.int64], bins: Bins, bits: int) -> NDArray[np.int64]:
    """Counts in coarser bins, from counts in finer ones: the same as if they had been counted so.

    Args:
        counts_UE: counts by bin, shape ``(…, E)``.
        bins: their bins.
        bits: of the coarser ones; at most those of ``bins``.
    """
    of_side = np.arange(0, bins.sizes, 1 << (bins.bits - bits))  # the first bin of each coarser one
    above = bins.zero + 1 + of_side
    starts = np.concatenate([of_side, [bins.zero], above]) if bins.signed else np.concatenate([[0], above])
    return np.asarray(np.add.reduceat(counts_UE, starts, axis=-1))
