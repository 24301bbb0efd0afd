"""Bins for activations that are the same for every unit and data set, and need no range to be known before.

Each octave of a size is cut into four, at 1, 1.25, 1.5 and 1.75 times a power of two: the bin of a float is then read
off its exponent and the first two bits of its fraction, and no logarithm is taken. Bins are in ascending order of the
activation; exact zeros have a bin of their own.

Shapes: E bins.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

LOWEST, HIGHEST = 2.0**-14, 2.0**10  # what is below (and not 0) or above is in the first or last bin of its sign
_SHIFT = 21  # bits of a float32's fraction that are dropped
_FIRST = int(np.float32(LOWEST).view(np.int32)) >> _SHIFT
SIZES = (int(np.float32(HIGHEST).view(np.int32)) >> _SHIFT) - _FIRST  # of one sign


def number_of_bins(signed: bool) -> int:
    """E: bins of each sign, and that of zero."""
    return (2 if signed else 1) * SIZES + 1


def zero_bin(signed: bool) -> int:
    """The place of the bin of exact zeros."""
    return SIZES if signed else 0


def bin_of(values: torch.Tensor, signed: bool) -> torch.Tensor:
    """The bin of each value.

    Args:
        values: float32, of any shape; never negative unless ``signed``.
        signed: whether there are bins for negative values.

    Returns:
        int32, of the same shape.
    """
    size = (values.abs().view(torch.int32) >> _SHIFT).sub_(_FIRST - 1).clamp_(1, SIZES)
    size.masked_fill_(values == 0, 0)
    return torch.where(values < 0, SIZES - size, SIZES + size) if signed else size


def edges(signed: bool) -> NDArray[np.float64]:
    """The E + 1 edges of the bins: bin e holds sizes from its inner edge (nearer to 0) up to its outer one.

    Zero's bin ends at the smallest float; the outermost edges are infinite.
    """
    bits = np.arange(_FIRST + 1, _FIRST + SIZES, dtype=np.int32) << _SHIFT
    sizes = bits.view(np.float32).astype(np.float64)
    tiny = np.finfo(np.float32).smallest_subnormal.astype(np.float64)
    upper = np.concatenate([[tiny], sizes, [np.inf]])
    return np.concatenate([-upper[::-1], upper]) if signed else np.concatenate([[0.0], upper])
