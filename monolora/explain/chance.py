"""What mutual information counts give by chance alone, when label and activation have nothing to do with each other.

Shapes: U units, G labels, K coarse bins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Floats = NDArray[np.float64]

_PAIRS_AT_A_TIME = 4096


def expected_information(labels_UG: Floats, bins_UK: Floats) -> Floats:
    """Expected mutual information (nats) of all tables with the same margins: permuting the labels gives it on average.

    The exact sum over hypergeometric cells (Vinh, Epps and Bailey, 2010, "Information Theoretic Measures for
    Clusterings Comparison", eq. 24a), which depends on a cell's margins only: cells of the same margins share it.

    Args:
        labels_UG: texts of each label, whole numbers, shape ``(U, G)``.
        bins_UK: texts in each bin, of the same sums, shape ``(U, K)``.

    Returns:
        Shape ``(U,)``; 0 where there are no texts.
    """
    n_U11 = np.broadcast_to(labels_UG.sum(1)[:, None, None], (len(labels_UG), labels_UG.shape[1], bins_UK.shape[1]))
    margins = np.stack(np.broadcast_arrays(n_U11, labels_UG[:, :, None], bins_UK[:, None, :]), -1)
    triples, place = np.unique(margins.reshape(-1, 3), axis=0, return_inverse=True)
    parts = [_cells(triples[start : start + _PAIRS_AT_A_TIME]) for start in range(0, len(triples), _PAIRS_AT_A_TIME)]
    of_triple = np.concatenate([*parts, np.empty(0)])
    return np.asarray(of_triple[place.reshape(n_U11.shape)].sum((1, 2)))


def _cells(triples: Floats) -> Floats:
    """By number of all texts, of the row's and of the column's: the expected term of such a cell."""
    n, a, b = triples.T
    most = np.minimum(a, b)
    k = np.arange(1, int(most.max(initial=0)) + 1)[:, None]
    least = np.maximum(1, a + b - n)
    is_there = (k >= least) & (k <= most)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p = (
            gammaln(a + 1) + gammaln(b + 1) + gammaln(n - a + 1) + gammaln(n - b + 1) - gammaln(n + 1) - gammaln(k + 1)
        ) - (gammaln(a - k + 1) + gammaln(b - k + 1) + gammaln(n - a - b + k + 1))
        terms = k / n * np.log(n * k / (a * b)) * np.exp(log_p)
    return np.asarray(np.where(is_there, terms, 0.0).sum(0))
