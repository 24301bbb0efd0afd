"""Samples of sparse features (section 4.2), and those with a label.

All sparsities share their random numbers: one uniform number v for each entry gives that entry at every S. What
differs between two sparsities then differs because of S.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from monolora.errors import InputError
from monolora.recipes.experiments.generators import generator_of

_MOST_DRAWS = 10_000  # of a row without an active feature


class Labelled(NamedTuple):
    """Samples, each with an active feature at least.

    Attributes:
        x_Nn: ``float32``, 0 to 1.
        labels_N: ``int64``, the largest feature.
    """

    x_Nn: torch.Tensor
    labels_N: torch.Tensor


def samples(v: torch.Tensor, sparsity: float | torch.Tensor) -> torch.Tensor:
    """Features that are 0 with probability S, and uniform in 0 to 1 otherwise.

    Args:
        v: uniform in 0 to 1, any shape.
        sparsity: S, 0 to below 1; a number or a tensor that broadcasts with ``v``.

    Returns:
        ``relu((v - S) / (1 - S))``, shaped as the two broadcast.
    """
    return ((v - sparsity) / (1 - sparsity)).relu_()


def labelled_samples(count: int, features: int, sparsity: float, seed: int, purpose: int) -> Labelled:
    """Samples whose label is their largest feature.

    Rows without an active feature have no largest one. They are drawn again, which leaves the distribution under the
    condition that a feature is active; the other rows keep the v that all sparsities share.

    Args:
        count: N.
        features: n.
        sparsity: S.
        seed: of a run.
        purpose: tells training from test samples.

    Raises:
        InputError: if S is so near 1 that nearly all rows have no active feature.
    """
    v_Nn = torch.rand(count, features, generator=generator_of([seed, purpose]))
    again = generator_of([seed, purpose, 1])
    drawn = count
    x_Nn = samples(v_Nn, sparsity)
    while len(empty := (x_Nn.amax(1) == 0).nonzero().squeeze(1)):
        drawn += len(empty)
        if drawn > _MOST_DRAWS * count:
            raise InputError(
                f"At --sparsities {sparsity} hardly any sample has an active feature. Lower it, or raise --features."
            )
        x_Nn[empty] = samples(torch.rand(len(empty), features, generator=again), sparsity)
    return Labelled(x_Nn, x_Nn.argmax(1))
