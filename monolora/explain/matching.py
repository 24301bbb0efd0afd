"""Matching the units of two adapters by what they fire on, with the Hungarian method.

Paulo and Belrose (2025, arXiv 2501.16615) match latents of two training runs by their weights; here activations decide.

Shapes: T tokens, N texts, U and V units of two adapters, K pairs, R resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from monolora.stats import SEED, Floats, resampled_means

_CONSTANT = 1e-9  # variance of standardised activations below which they are constant
RESAMPLES = 1000


class Pairs(NamedTuple):
    """Units of two adapters that were matched, by their indices, ``(K,)`` each, and the sizes of their correlations."""

    first_K: NDArray[np.int64]
    second_K: NDArray[np.int64]
    correlation_K: Floats


def matched(first_TU: Floats, second_TV: Floats) -> Pairs:
    """The one-to-one matching with the largest sum of the correlations' sizes (Hungarian method).

    Units that are constant on the tokens are left out.
    """
    z_TU, z_TV = _standardised(first_TU), _standardised(second_TV)
    live_U, live_V = np.flatnonzero(z_TU.any(0)), np.flatnonzero(z_TV.any(0))
    size_UV = np.abs(z_TU[:, live_U].T @ z_TV[:, live_V]) / len(z_TU)
    rows, columns = linear_sum_assignment(size_UV, maximize=True)
    return Pairs(live_U[rows], live_V[columns], np.minimum(size_UV[rows, columns], 1.0))


def resampled_correlations(
    first_TK: Floats, second_TK: Floats, text_T: NDArray[np.int64], resamples: int = RESAMPLES, seed: int = SEED
) -> Floats:
    """The sizes of the correlations of pairs of units on resampled texts, ``(K, R)``; NaN where one is constant.

    Args:
        first_TK, second_TK: activations of the pairs.
        text_T: index of each token's text, from 0.
        resamples: how many.
        seed: of the draws.
    """
    x_TK, y_TK = _standardised(first_TK), _standardised(second_TK)
    count_N = np.bincount(text_T).astype(np.float64)
    moments = [x_TK, y_TK, x_TK**2, y_TK**2, x_TK * y_TK]
    sums = np.zeros((len(count_N), 5 * x_TK.shape[1]))
    np.add.at(sums, text_T, np.concatenate(moments, axis=1))
    means = resampled_means((sums / count_N[:, None]).T, count_N, resamples, seed)
    x_KR, y_KR, xx_KR, yy_KR, xy_KR = np.split(means, 5)
    spread_KR = (xx_KR - x_KR**2) * (yy_KR - y_KR**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread_KR > _CONSTANT, np.abs(xy_KR - x_KR * y_KR) / np.sqrt(spread_KR), np.nan)


def _standardised(h_TU: Floats) -> Floats:
    """In standard deviations from the mean; 0 for what is constant."""
    centred_TU, std_U = h_TU - h_TU.mean(0), h_TU.std(0)
    is_constant_U = std_U <= 1e-6 * np.abs(h_TU).max(0)
    return np.where(is_constant_U, 0.0, centred_TU / np.where(is_constant_U, 1.0, std_U))
