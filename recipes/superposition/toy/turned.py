"""The rotation in which an encoder is easiest to read.

A linear classifier, and the reconstruction, see the same in R W as in W for any orthogonal R: the axes mean nothing.
A picture of W wants those with the sparsest entries. This is quartimax of factor analysis.
"""

from __future__ import annotations

import torch

from monolora.recipes.experiments.generators import generator_of

_STARTS = 32
_STEPS = 300
_SETTLED = 1e-10  # relative gain of a step
_LARGE = 0.5  # share of a row's largest entry


def turned(W_mn: torch.Tensor) -> torch.Tensor:
    """Rotate an encoder's outputs so that their weights are sparse.

    Args:
        W_mn: weights of one encoder, shape ``(m, n)``.

    Returns:
        ``R W`` with R orthogonal and the sum of fourth powers as large as was found from 32 starts. Rows are ordered
        by their first large feature, and their largest entries are positive. ``W^T W`` is unchanged.
    """
    W = W_mn.double().cpu()
    R_smm = _starts(len(W))
    before = torch.zeros((), dtype=W.dtype)
    for _ in range(_STEPS):
        turned_smn = R_smm @ W
        most = turned_smn.pow(4).sum((-2, -1)).amax()
        if most - before <= _SETTLED * most:
            break
        before = most
        R_smm = _nearest_rotation(turned_smn.pow(3) @ W.T)
    turned_smn = R_smm @ W
    best_mn = turned_smn[turned_smn.pow(4).sum((-2, -1)).argmax()]
    return _ordered(best_mn).to(W_mn)


def _starts(m: int) -> torch.Tensor:
    """Rotations, the identity first."""
    drawn = torch.randn(_STARTS - 1, m, m, generator=generator_of([m]), dtype=torch.float64)
    return torch.cat([torch.eye(m, dtype=torch.float64).unsqueeze(0), torch.linalg.qr(drawn).Q])


def _nearest_rotation(gradient_smm: torch.Tensor) -> torch.Tensor:
    """Where the linear bound of the convex objective is largest: a step never lowers it."""
    U_smm, _, Vh_smm = torch.linalg.svd(gradient_smm)
    return U_smm @ Vh_smm


def _ordered(W_mn: torch.Tensor) -> torch.Tensor:
    most_m1 = W_mn.abs().amax(1, keepdim=True)
    largest_m1 = W_mn.gather(1, W_mn.abs().argmax(1, keepdim=True))
    signed_mn = W_mn * torch.where(largest_m1 < 0, -1.0, 1.0)
    first_m = (W_mn.abs() > _LARGE * most_m1).int().argmax(1)  # of several, argmax gives the first
    empty_m = most_m1.squeeze(1) < _LARGE * most_m1.max()  # rows of no feature come last
    return signed_mn[(first_m + W_mn.shape[1] * empty_m).argsort(stable=True)]
