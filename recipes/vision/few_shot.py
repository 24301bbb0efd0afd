"""A share of the training images, drawn class by class (paper, section 3.2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def stratified(labels_N: torch.Tensor, fraction: float, seed: int | Sequence[int]) -> torch.Tensor:
    """Places of ``round(fraction * count)`` images of each class, at least one of each, in ascending order.

    For one seed a smaller fraction's images are among a larger one's.

    Args:
        labels_N: ``int64``, on the CPU.
        fraction: above 0, at most 1.
        seed: of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(labels_N))  # of all images, whatever the fraction
    labels = labels_N.numpy()[order]
    chosen = []
    for each in np.unique(labels):
        of_class = order[labels == each]
        chosen.append(of_class[: max(1, round(fraction * len(of_class)))])
    return torch.from_numpy(np.sort(np.concatenate(chosen)))
