"""Whether a unit is more active on the texts of one group than on those of another, from binned activations.

The activations are those that the bins tell apart: two in the same bin are a tie. The finer the bins, the nearer are
the results to those of the activations themselves.

Shapes: U units, E bins in ascending order of activation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

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
    some ten texts a group on. Each unit is tested by itself: see :func:`monolora.explain.rates.false_discovery_rate`.

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
