"""Semantic consistency: how far a dimension is activated by images of one class only (section 4.1; Wang et al., 2024).

Shapes: B images of a part, N of a data set, D dimensions of a representation, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

_CHUNK = 4096  # images counted at a time


class Top(NamedTuple):
    """The images that activate a dimension most.

    Attributes:
        images: places in the data set, the most activated first.
        activations: theirs.
    """

    images: list[int]
    activations: list[float]


def semantic_consistency(z_ND: torch.Tensor, labels_N: torch.Tensor, classes: int, threshold: float) -> torch.Tensor:
    """Of the images that activate a dimension, the share of their most frequent class.

    Args:
        z_ND: representations.
        labels_N: ``int64``, on their device.
        classes: C.
        threshold: an image with ``|z|`` above it activates the dimension. Of dense features, as SimCLR's, nearly all
            images do: the share is then near that of the most frequent class among all.

    Returns:
        ``float32``, shape ``(D,)``; NaN for dimensions that no image activates.
    """
    counts_CD = torch.zeros(classes, z_ND.shape[1], dtype=torch.float64, device=z_ND.device)
    for z_BD, labels_B in zip(z_ND.split(_CHUNK), labels_N.split(_CHUNK), strict=True):
        active_BD = (z_BD.abs() > threshold).float()
        counts_CD += F.one_hot(labels_B, classes).float().T @ active_BD  # whole numbers: exact in any precision
    return (counts_CD.max(0).values / counts_CD.sum(0)).float()


def salient_dimensions(z_ND: torch.Tensor) -> torch.Tensor:
    """Each image's dimension with the largest activation, shape ``(N,)``."""
    return z_ND.argmax(1)


def salient_consistency(z_ND: torch.Tensor, consistency_D: torch.Tensor, threshold: float) -> torch.Tensor:
    """The consistency of each image's salient dimension (Figure 4c).

    Returns:
        Shape ``(N,)``; NaN for images that do not activate it: behind a ReLU, those that are zero everywhere.
    """
    salient_N = salient_dimensions(z_ND)
    active_N = z_ND.gather(1, salient_N[:, None])[:, 0].abs() > threshold
    return torch.where(active_N, consistency_D[salient_N], torch.nan)


def top_images(z_ND: torch.Tensor, dimension: int, count: int, threshold: float) -> Top:
    """The ``count`` images that activate a dimension most, fewer if fewer activate it; of equal ones the first."""
    z_N = z_ND[:, dimension]
    order_N = z_N.argsort(descending=True, stable=True)
    top = order_N[z_N[order_N].abs() > threshold][:count]
    return Top(top.tolist(), z_N[top].tolist())
