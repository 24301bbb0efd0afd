"""The encoders (section 4.2; Elhage et al., 2022), all sparsities and seeds trained at once.

An encoder is W (m x n) and b (n); it reconstructs x as relu(W^T W x + b), and feature i counts decay^i. Random numbers
are a seed's own and the same at all sparsities: a seed's encoders do not depend on what is trained beside them, up to
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from monolora.errors import RunError
from monolora.recipes.experiments.generators import generator_of
from monolora.recipes.superposition.settings import Run
from monolora.recipes.superposition.toy.sparse_data import samples

FRESH = 10_000  # samples that the trained encoders' loss is measured on
_INITIAL, _TRAIN, _FRESH = range(3)  # what a seed is of: [seed, one of these]
_AT_ONCE = 16  # steps whose random numbers are drawn together


class Encoders(NamedTuple):
    """K encoders, sparsity by sparsity, or with the leading shape ``(S, seeds)``.

    Attributes:
        W_Kmn, b_Kn: ``float32``.
        loss_K: weighted reconstruction loss on fresh samples of the sparsity that they were trained at.
    """

    W_Kmn: torch.Tensor
    b_Kn: torch.Tensor
    loss_K: torch.Tensor


def train_encoders(settings: Run, device: torch.device) -> Encoders:
    """Train an encoder for each sparsity and seed.

    Returns:
        With the leading shape ``(S, seeds)``, on the CPU.

    Raises:
        RunError: if the weights do not stay finite.
    """
    shape = len(settings.sparsities), settings.seeds
    sparsity_K11 = torch.tensor(settings.sparsities, device=device).repeat_interleave(settings.seeds).view(-1, 1, 1)
    importance_n = importances(settings).to(device)
    W_Kmn = _initial(settings).repeat(shape[0], 1, 1).to(device).requires_grad_()
    b_K1n = torch.zeros(len(W_Kmn), 1, settings.features, device=device, requires_grad=True)
    adam = torch.optim.Adam([W_Kmn, b_K1n], lr=settings.encoder_learning_rate)
    steps = settings.encoder_steps
    falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    for v_seedsBn in _uniforms(settings, steps, device):
        x_KBn = samples(v_seedsBn.repeat(shape[0], 1, 1), sparsity_K11)
        reconstruction_loss(W_Kmn, b_K1n, x_KBn, importance_n).sum().backward()
        adam.step()
        falling.step()
        adam.zero_grad()
    W_Kmn, b_K1n = W_Kmn.detach(), b_K1n.detach()
    if not (W_Kmn.isfinite().all() and b_K1n.isfinite().all()):
        raise RunError(f"The encoders diverged. Lower --encoder-learning-rate ({settings.encoder_learning_rate}).")
    loss_K = torch.cat(
        [
            reconstruction_loss(W_Kmn[[place]], b_K1n[[place]], x_1Nn, importance_n)
            for place, x_1Nn in enumerate(_fresh(settings, device))
        ]
    )
    return Encoders(*(each.cpu().view(*shape, *each.shape[1:]) for each in (W_Kmn, b_K1n.squeeze(1), loss_K)))


def importances(settings: Run) -> torch.Tensor:
    """I_i = decay^i, shape ``(n,)``."""
    return settings.importance_decay ** torch.arange(settings.features)


def reconstruction_loss(
    W_Kmn: torch.Tensor, b_K1n: torch.Tensor, x_KBn: torch.Tensor, importance_n: torch.Tensor
) -> torch.Tensor:
    """``sum_i I_i (x_i - relu(W^T W x + b)_i)^2``, its mean over the batch, shape ``(K,)``."""
    h_KBm = torch.bmm(x_KBn, W_Kmn.mT)
    found_KBn = torch.baddbmm(b_K1n, h_KBm, W_Kmn).relu()
    return (found_KBn - x_KBn).square().mean(1) @ importance_n


def _initial(settings: Run) -> torch.Tensor:
    """W of each seed, with variance 2 / (n + m)."""
    m, n = settings.dimensions, settings.features
    drawn = [torch.randn(m, n, generator=generator_of([seed, _INITIAL])) for seed in range(settings.seeds)]
    return torch.stack(drawn) * math.sqrt(2 / (n + m))


def _uniforms(settings: Run, steps: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Of each step, numbers from 0 to 1, shape ``(seeds, B, n)``."""
    generators = [generator_of([seed, _TRAIN]) for seed in range(settings.seeds)]
    for start in range(0, steps, _AT_ONCE):
        shape = min(_AT_ONCE, steps - start), settings.encoder_batch, settings.features
        yield from torch.stack([torch.rand(shape, generator=each) for each in generators], 1).to(device)


def _fresh(settings: Run, device: torch.device) -> Iterator[torch.Tensor]:
    """Samples of each encoder's sparsity, ``(1, FRESH, n)``."""
    for sparsity in settings.sparsities:
        for seed in range(settings.seeds):
            v_Nn = torch.rand(FRESH, settings.features, generator=generator_of([seed, _FRESH]))
            yield samples(v_Nn, sparsity).unsqueeze(0).to(device)
