"""NT-Xent, the loss of SimCLR and NCL, over all images of a step: those of other processes and of other parts too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import distributed
from torch.distributed.nn.functional import all_gather


def nt_xent(z_2BD: torch.Tensor, temperature: float) -> torch.Tensor:
    """The normalised, temperature-scaled cross entropy (Chen et al., 2020, equation 1), a scalar.

    Each view is to find the other view of its image among all other views, by cosine similarity.

    Args:
        z_2BD: shape ``(2, B, D)``: the two views' representations, unnormalised; B at least 2. For NCL they are
            non-negative.
        temperature: similarities are divided by it.
    """
    views, batch, _ = z_2BD.shape
    z_ND = F.normalize(z_2BD.flatten(0, 1), dim=-1)
    similar_NN = z_ND @ z_ND.T / temperature
    similar_NN = similar_NN.masked_fill(torch.eye(views * batch, dtype=torch.bool, device=z_ND.device), -torch.inf)
    partners_N = torch.arange(views * batch, device=z_ND.device).roll(batch)
    return F.cross_entropy(similar_NN, partners_N)


def of_all_processes(z_2BD: torch.Tensor) -> torch.Tensor:
    """The representations of all processes' images, ``(2, B of all, D)``, differentiable; of this one's where alone.

    Every process computes the loss of them all, so the average of the processes' gradients, which is what they step
    with, is the gradient of one process that has all images.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return z_2BD
    return torch.cat(all_gather(z_2BD.contiguous()), dim=1)
