"""The toy model of superposition (section 4.2; Elhage et al., 2022): sparse data, encoders, and their geometry.

An encoder is W (m x n) and b (n). It reconstructs x as relu(W^T W x + b), in which feature i counts decay^i; column W_i
is the direction of feature i. Encoders of all sparsities and seeds are trained together.

All sparsities share their random numbers: one uniform number v for each entry gives that entry at every S, so that two
sparsities differ by S alone. Random numbers are a seed's own: a seed's encoders do not depend on which others are
trained with them, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from monolora.errors import InputError, RunError
from monolora.recipes.experiment_steps import generator_of
from monolora.recipes.superposition.settings import Run

FRESH = 10_000  # samples that the trained encoders' loss is measured on
REPRESENTED = 0.5  # the norm above which a feature is represented
OPPOSITE = -0.9  # the cosine below which two features are antipodal

_INITIAL, _TRAIN, _FRESH = range(3)  # purposes of a generator: its seed is [seed, purpose]
_STEPS_DRAWN = 16  # steps whose random numbers are drawn in one call
_MAX_DRAWS = 10_000  # of a row without an active feature

_STARTS = 32  # rotations that quartimax climbs from: it has local optima
_MAX_STEPS = 300
_SETTLED = 1e-10  # relative gain of a step
_LARGE = 0.5  # share of a row's largest entry


# Data.


class Labelled(NamedTuple):
    """Samples with at least one active feature each.

    Attributes:
        x_Nn: ``float32``, 0 to 1.
        labels_N: ``int64``, the index of the largest feature.
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

    Rows without an active feature have no largest one. They are drawn again, which gives the distribution on condition
    that a feature is active; the other rows keep the v that all sparsities share.

    Args:
        count: N.
        features: n.
        sparsity: S.
        seed: of a run.
        purpose: distinguishes training from test samples.

    Raises:
        InputError: if S is so near 1 that nearly all rows have no active feature.
    """
    v_Nn = torch.rand(count, features, generator=generator_of([seed, purpose]))
    redraws = generator_of([seed, purpose, 1])  # apart from v, whose order must not depend on S
    drawn = count
    x_Nn = samples(v_Nn, sparsity)
    while len(empty := (x_Nn.amax(1) == 0).nonzero().squeeze(1)):
        drawn += len(empty)
        if drawn > _MAX_DRAWS * count:
            raise InputError(
                f"At --sparsities {sparsity} hardly any sample has an active feature. Lower it, or raise --features."
            )
        x_Nn[empty] = samples(torch.rand(len(empty), features, generator=redraws), sparsity)
    return Labelled(x_Nn, x_Nn.argmax(1))


# Encoders.


class Encoders(NamedTuple):
    """K encoders, ordered by sparsity and then seed, or with the leading shape ``(S, seeds)``.

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
    cosine = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    for v_seedsBn in _uniforms(settings, steps, device):
        x_KBn = samples(v_seedsBn.repeat(shape[0], 1, 1), sparsity_K11)
        # The losses of encoders are added: each encoder's gradient is that of its own loss alone.
        reconstruction_loss(W_Kmn, b_K1n, x_KBn, importance_n).sum().backward()
        adam.step()
        cosine.step()
        adam.zero_grad()
    W_Kmn, b_K1n = W_Kmn.detach(), b_K1n.detach()
    if not (W_Kmn.isfinite().all() and b_K1n.isfinite().all()):
        raise RunError(f"The encoders diverged. Lower --encoder-learning-rate ({settings.encoder_learning_rate}).")
    loss_K = torch.cat(
        [
            reconstruction_loss(W_Kmn[[index]], b_K1n[[index]], x_1Nn, importance_n)
            for index, x_1Nn in enumerate(_fresh_samples(settings, device))
        ]
    )
    tensors = (W_Kmn, b_K1n.squeeze(1), loss_K)
    return Encoders(*(tensor.cpu().view(*shape, *tensor.shape[1:]) for tensor in tensors))


def importances(settings: Run) -> torch.Tensor:
    """I_i = decay^i, shape ``(n,)``."""
    return settings.importance_decay ** torch.arange(settings.features)


def reconstruction_loss(
    W_Kmn: torch.Tensor, b_K1n: torch.Tensor, x_KBn: torch.Tensor, importance_n: torch.Tensor
) -> torch.Tensor:
    """``sum_i I_i (x_i - relu(W^T W x + b)_i)^2``, its mean over the batch, shape ``(K,)``."""
    h_KBm = torch.bmm(x_KBn, W_Kmn.mT)
    reconstruction_KBn = torch.baddbmm(b_K1n, h_KBm, W_Kmn).relu()
    return (reconstruction_KBn - x_KBn).square().mean(1) @ importance_n


def _initial(settings: Run) -> torch.Tensor:
    """W of each seed, with the variance 2 / (n + m) of Xavier initialization; the same at all sparsities."""
    m, n = settings.dimensions, settings.features
    drawn = [torch.randn(m, n, generator=generator_of([seed, _INITIAL])) for seed in range(settings.seeds)]
    return torch.stack(drawn) * math.sqrt(2 / (n + m))


def _uniforms(settings: Run, steps: int, device: torch.device) -> Iterator[torch.Tensor]:
    """The v of each step, uniform from 0 to 1, shape ``(seeds, B, n)``."""
    generators = [generator_of([seed, _TRAIN]) for seed in range(settings.seeds)]
    for start in range(0, steps, _STEPS_DRAWN):
        shape = min(_STEPS_DRAWN, steps - start), settings.encoder_batch, settings.features
        yield from torch.stack([torch.rand(shape, generator=generator) for generator in generators], 1).to(device)


def _fresh_samples(settings: Run, device: torch.device) -> Iterator[torch.Tensor]:
    """New samples for each encoder, of its sparsity, ``(1, FRESH, n)``."""
    for sparsity in settings.sparsities:
        for seed in range(settings.seeds):
            v_Nn = torch.rand(FRESH, settings.features, generator=generator_of([seed, _FRESH]))
            yield samples(v_Nn, sparsity).unsqueeze(0).to(device)


# Geometry. All of this stays the same when the space of h is rotated.


def represented(W_mn: torch.Tensor) -> torch.Tensor:
    """Whether ``||W_i|| > 0.5``: ``bool``, shape ``(..., n)`` for weights ``(..., m, n)``."""
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

    A feature's partner is the represented feature nearest to its opposite direction, with a cosine below -0.9. Two
    features are a pair if each is the other's partner.

    Args:
        W_mn: weights, shape ``(..., m, n)``.

    Returns:
        ``bool``, shape ``(..., n)``.
    """
    represented_n = represented(W_mn)
    # Clamping changes only features that are not represented: it keeps their columns from being divided by 0.
    unit_mn = W_mn / W_mn.norm(dim=-2, keepdim=True).clamp_min(REPRESENTED)
    both_nn = represented_n.unsqueeze(-1) & represented_n.unsqueeze(-2)
    cosine_nn = (unit_mn.mT @ unit_mn).masked_fill(~both_nn, 1.0)
    lowest_n, partner_n = cosine_nn.min(-1)
    partners_partner_n = partner_n.gather(-1, partner_n)
    own_n = torch.arange(partner_n.shape[-1], device=partner_n.device)
    return (lowest_n < OPPOSITE) & (partners_partner_n == own_n)


# The rotation in which an encoder is easiest to read. A linear classifier, and the reconstruction, see the same in R W
# as in W for any orthogonal R: the axes mean nothing. A picture of W is clearest where its entries are sparsest.


def quartimax(W_mn: torch.Tensor) -> torch.Tensor:
    """Rotate an encoder's outputs so that their weights are sparse: quartimax of factor analysis.

    Args:
        W_mn: weights of one encoder, shape ``(m, n)``.

    Returns:
        ``R W`` with R orthogonal and the sum of fourth powers as large as 32 starts reach. Rows are ordered by their
        first large feature, and their largest entries are positive. ``W^T W`` is unchanged.
    """
    W = W_mn.double().cpu()
    R_smm = _starting_rotations(len(W))
    previous = torch.zeros((), dtype=W.dtype)
    for _ in range(_MAX_STEPS):
        rotated_smn = R_smm @ W
        objective = rotated_smn.pow(4).sum((-2, -1)).amax()
        if objective - previous <= _SETTLED * objective:
            break
        previous = objective
        R_smm = _nearest_rotation(rotated_smn.pow(3) @ W.T)
    rotated_smn = R_smm @ W
    best_mn = rotated_smn[rotated_smn.pow(4).sum((-2, -1)).argmax()]
    return _ordered(best_mn).to(W_mn)


def _starting_rotations(m: int) -> torch.Tensor:
    """Rotations, the identity first."""
    gaussian = torch.randn(_STARTS - 1, m, m, generator=generator_of([m]), dtype=torch.float64)
    return torch.cat([torch.eye(m, dtype=torch.float64).unsqueeze(0), torch.linalg.qr(gaussian).Q])


def _nearest_rotation(gradient_smm: torch.Tensor) -> torch.Tensor:
    """The rotation that maximizes the objective's linear lower bound; the objective is convex, so no step lowers it."""
    U_smm, _, Vh_smm = torch.linalg.svd(gradient_smm)
    return U_smm @ Vh_smm


def _ordered(W_mn: torch.Tensor) -> torch.Tensor:
    row_max_m1 = W_mn.abs().amax(1, keepdim=True)
    largest_m1 = W_mn.gather(1, W_mn.abs().argmax(1, keepdim=True))
    signed_mn = W_mn * torch.where(largest_m1 < 0, -1.0, 1.0)
    first_m = (W_mn.abs() > _LARGE * row_max_m1).int().argmax(1)  # argmax gives the first of several
    empty_m = row_max_m1.squeeze(1) < _LARGE * row_max_m1.max()  # rows without a feature come last
    return signed_mn[(first_m + W_mn.shape[1] * empty_m).argsort(stable=True)]
