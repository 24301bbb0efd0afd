"""Anthropic's toy model of superposition: data, training, and the geometry of what it learns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from monolora.errors import InputError, RunError
from monolora.recipes.experiment_steps import generator_of
from monolora.recipes.superposition.settings import Run

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
