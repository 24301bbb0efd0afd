"""Histograms of activations, with the same bins for every unit and data set, and group contrasts from them.

Each octave of a size is cut into 2^bits equal parts: the bin of a float is read off its exponent and the first bits
of its fraction, without a logarithm. Bins are in ascending order of the activation; exact zeros have a bin
of their own.

Shapes: E bins.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr

LOWEST, HIGHEST = 2.0**-14, 2.0**10  # smaller (not 0) and larger sizes are in the first or last bin of their sign
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
        """The index of the bin of exact zeros."""
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
    """Counts in coarser bins, from counts in finer ones; exact.

    Args:
        counts_UE: counts by bin, shape ``(…, E)``.
        bins: their bins.
        bits: of the coarser ones; at most those of ``bins``.
    """
    of_side = np.arange(0, bins.sizes, 1 << (bins.bits - bits))  # the first bin of each coarser one
    above = bins.zero + 1 + of_side
    starts = np.concatenate([of_side, [bins.zero], above]) if bins.signed else np.concatenate([[0], above])
    return np.asarray(np.add.reduceat(counts_UE, starts, axis=-1))


_AT_A_TIME = 1024  # units: some 10 MB for 200 bins

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


class GroupContrast(NamedTuple):
    """Groups ``a`` and ``b`` by unit, shape ``(U,)`` each; NaN where a group has no texts.

    Attributes:
        auc_U: area under the ROC curve: chance that a text of ``a`` has a higher activation than one of ``b``, ties
            half; 0.5 where the unit does not tell them apart. Cliff's delta is ``2 auc - 1``.
        p_U: two-sided p-value of the Mann-Whitney test; 1 where all texts are tied.
    """

    auc_U: Floats
    p_U: Floats


def contrast(counts_a_UE: Counts, counts_b_UE: Counts) -> GroupContrast:
    """Compare two groups of texts unit by unit.

    The p-value is that of the test's normal approximation, corrected for ties and for continuity, which is fair from
    some ten texts a group on. Each unit is tested by itself: see :func:`monolora.stats.false_discovery_rate`.

    Args:
        counts_a_UE: texts of group ``a`` by bin, shape ``(U, E)``; at most two thousand million texts.
        counts_b_UE: of group ``b``, in the same bins; likewise.
    """
    auc_U, p_U = np.empty(len(counts_a_UE)), np.empty(len(counts_a_UE))
    for start in range(0, len(counts_a_UE), _AT_A_TIME):
        at = slice(start, start + _AT_A_TIME)
        auc_U[at], p_U[at] = _contrast(counts_a_UE[at], counts_b_UE[at])
    return GroupContrast(auc_U, p_U)


def _contrast(a_UE: Counts, b_UE: Counts) -> tuple[Floats, Floats]:
    """AUC and p-value; a tie of all texts is exactly one, however many they are."""
    a_U, b_U, ties_UE = a_UE.sum(1), b_UE.sum(1), a_UE + b_UE
    n_U = a_U + b_U
    wins_U = (a_UE * (2 * b_UE.cumsum(1) - b_UE)).sum(1)  # twice Mann and Whitney's U
    # n³ - n less the sum of t³ - t over ties of t texts: as a sum of products, without a difference that rounds, and
    # with cubes as floats, since they soon are too large for int64.
    untied_U = (ties_UE.astype(np.float64) * (n_U[:, None] - ties_UE) * (n_U[:, None] + ties_UE)).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        auc_U = wins_U / (2 * a_U * b_U)
        deviation_U = np.sqrt(a_U * b_U / 12 * untied_U / n_U / (n_U - 1))
        z_U = (np.abs(wins_U - a_U * b_U) / 2 - 0.5) / deviation_U  # -inf where all are tied
    return auc_U, np.where(np.isnan(auc_U), np.nan, np.minimum(2 * ndtr(-z_U), 1))
