"""What an encoder does with its features: which it represents, in how much of a dimension, and in antipodal pairs.

(Elhage et al., 2022.) Column W_i is the direction of feature i. All of this stays when the space of h is rotated.
"""

from __future__ import annotations

import torch

REPRESENTED = 0.5  # the norm above which a feature is
OPPOSITE = -0.9  # the cosine below which two are


def represented(W_mn: torch.Tensor) -> torch.Tensor:
    """Whether ``||W_i|| > 0.5``: ``bool``, shape ``(..., n)`` of weights ``(..., m, n)``."""
    return W_mn.norm(dim=-2) > REPRESENTED


def dimensionality(W_mn: torch.Tensor) -> torch.Tensor:
    """The share of a dimension that each feature has to itself.

    Args:
        W_mn: weights, shape ``(..., m, n)``.

    Returns:
        ``||W_i||^2 / sum_j (Wn_i . W_j)^2`` with ``Wn_i = W_i / ||W_i||``, and 0 where the norm is 0; shape
        ``(..., n)``. 1 for a direction of its own, 1/2 in an antipodal pair; they sum to m at most.
    """
    gram_nn = W_mn.mT @ W_mn
    squared_n = gram_nn.diagonal(dim1=-2, dim2=-1).square()
    return (squared_n / gram_nn.square().sum(-1)).nan_to_num_(0.0)


def in_antipodal_pair(W_mn: torch.Tensor) -> torch.Tensor:
    """Whether a represented feature and another have opposite directions.

    The other is, of the represented ones, nearest to the opposite direction, with a cosine below -0.9; and the first
    is that to the other.

    Args:
        W_mn: weights, shape ``(..., m, n)``.

    Returns:
        ``bool``, shape ``(..., n)``.
    """
    there_n = represented(W_mn)
    unit_mn = W_mn / W_mn.norm(dim=-2, keepdim=True).clamp_min(REPRESENTED)  # the others do not count
    both_nn = there_n.unsqueeze(-1) & there_n.unsqueeze(-2)
    cosine_nn = (unit_mn.mT @ unit_mn).masked_fill(~both_nn, 1.0)
    lowest_n, partner_n = cosine_nn.min(-1)
    back_n = partner_n.gather(-1, partner_n)
    return (lowest_n < OPPOSITE) & (back_n == torch.arange(back_n.shape[-1], device=back_n.device))
