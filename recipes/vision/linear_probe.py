"""Many linear classifiers on the same features, trained together (section 3.1.2).

They differ in their labels and losses and see the same batches, so that a step is two matrix products for all of them.
The gradients are written out; SGD with momentum follows a cosine schedule. The problem is convex, so all classifiers
start at zero.

Shapes, besides the package's: K = C * M rows of the weights, class by class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from monolora.errors import InputError, RunError
from monolora.recipes.experiment_steps import softmax_into
from monolora.recipes.vision.settings import Probe

MOMENTUM = 0.9
LOG_ZERO = math.log(1e-4)  # symmetric cross entropy's stand-in for log 0 (Wang et al., 2019)
_CHUNK = 2048  # features classified at a time

Orders = Callable[[int], Iterable[torch.Tensor]]  # of an epoch, the indices of each batch


class Loss(NamedTuple):
    """``alpha`` x cross entropy + ``beta`` x reverse cross entropy (Wang et al., 2019b).

    The reverse cross entropy of probabilities p and a label y is ``-LOG_ZERO * (1 - p_y)``. The gradient of the sum
    with respect to the logits is ``(alpha - beta * LOG_ZERO * p_y) * (p - onehot(y))``.
    """

    alpha: float
    beta: float


CROSS_ENTROPY = Loss(1.0, 0.0)


class Probes(NamedTuple):
    """M classifiers: the logits of a feature x are ``(x / scale) @ weight.T + bias``.

    Attributes:
        weight_MCD, bias_MC: ``float32``.
        scale: the root mean square of the training features' norms.
    """

    weight_MCD: torch.Tensor
    bias_MC: torch.Tensor
    scale: float

    def correct(self, x_ND: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Which features each classifier gets right: ``bool``, ``(M, N)``, on the CPU.

        Args:
            x_ND: features, on any device.
            labels: ``(N,)``, or ``(M, N)`` if each classifier has its own.
        """
        count, classes, dim = self.weight_MCD.shape
        weight_KD, device = self.weight_MCD.reshape(-1, dim), self.weight_MCD.device
        predictions = []
        for x_BD in x_ND.split(_CHUNK):
            logits_BK = torch.addmm(self.bias_MC.reshape(-1), x_BD.to(device) / self.scale, weight_KD.T)
            predictions.append(logits_BK.view(-1, count, classes).argmax(-1).T.cpu())
        return torch.cat(predictions, 1) == labels

    def select(self, indices: torch.Tensor) -> Probes:
        """Some of the classifiers, in the order of ``indices``."""
        return self._replace(weight_MCD=self.weight_MCD[indices], bias_MC=self.bias_MC[indices])


class FeatureSource(NamedTuple):
    """The training features, batch by batch.

    Attributes:
        dim: D.
        scale: that features are divided by.
        batches: of an epoch, ``(indices_B, x_BD)``: indices of training images, and their scaled features on the device
            in the precision of the products. Each epoch has every index once.
    """

    dim: int
    scale: float
    batches: Callable[[int], Iterator[tuple[torch.Tensor, torch.Tensor]]]


def feature_scale(x_ND: torch.Tensor) -> float:
    """The root mean square of the norms: features divided by it train at one learning rate, whatever their size.

    Raises:
        InputError: if they are all zero, or not finite.
    """
    scale = float(torch.linalg.vector_norm(x_ND, dtype=torch.float64)) / math.sqrt(len(x_ND))
    if not 0 < scale < math.inf:
        what = "all zero" if scale == 0 else "not finite"
        raise InputError(f"The features are {what}: nothing can be learned from them. Pretrain again.")
    return scale


def shuffled(count: int, batch_size: int, seed: Sequence[int]) -> Sequence[torch.Tensor]:
    """The indices below ``count`` in batches, in an order that the seed determines."""
    order_N = np.random.default_rng(seed).permutation(count)
    return torch.from_numpy(order_N).split(batch_size)


def cached_source(x_ND: torch.Tensor, orders: Orders, dtype: torch.dtype, device: torch.device) -> FeatureSource:
    """Batches of features that have been computed.

    Args:
        x_ND: of all training images.
        orders: the batches of each epoch.
        dtype: of the products.
        device: that the features are moved to.

    Raises:
        InputError: if the features are all zero, or not finite.
    """
    scale = feature_scale(x_ND)
    scaled_ND = (x_ND.to(device) / scale).to(dtype)

    def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for indices_B in orders(epoch):
            on_device_B = indices_B.to(device, non_blocking=True)
            yield on_device_B, scaled_ND.index_select(0, on_device_B)

    return FeatureSource(x_ND.shape[1], scale, batches)


def train_probes(
    source: FeatureSource,
    labels_MN: torch.Tensor,
    classes: int,
    losses: Sequence[Loss],
    settings: Probe,
    dtype: torch.dtype,
    device: torch.device,
) -> Probes:
    """Train a classifier for each row of labels.

    Args:
        source: of the features.
        labels_MN: ``int64``.
        classes: C.
        losses: of each classifier.
        settings: epochs, batch size, learning rate, weight decay.
        dtype: of the products; weights, softmax and sums are ``float32`` at least.
        device: that trains.

    Raises:
        RunError: if the weights do not stay finite.
    """
    # Classifiers with the same labels and loss are the same: at rate 0, all draws. Each is trained once.
    kinds_M = torch.tensor([losses.index(loss) for loss in losses])
    distinct, origin_M = torch.unique(torch.column_stack([kinds_M, labels_MN]), dim=0, return_inverse=True)
    kinds_M, labels_MN = distinct[:, 0], distinct[:, 1:]
    classifiers = _Classifiers(source.dim, classes, [losses[kind] for kind in kinds_M], settings, dtype, device)
    labels_NM = labels_MN.T.contiguous().to(device)
    steps = settings.epochs * math.ceil(labels_MN.shape[1] / settings.batch_size)
    step = 0
    for epoch in range(settings.epochs):
        for indices_B, x_BD in source.batches(epoch):
            cosine = (1 + math.cos(math.pi * step / steps)) / 2
            labels_MB = labels_NM.index_select(0, indices_B.to(device)).T
            classifiers.step(x_BD, labels_MB, settings.learning_rate * cosine)
            step += 1
        if not classifiers.weight_KD.isfinite().all():
            raise RunError(
                f"The linear classifiers diverged in epoch {epoch + 1}. Lower --learning-rate (of the probe: "
                f"{settings.learning_rate}) or --weight-decay ({settings.weight_decay})."
            )
    return classifiers.probes(source.scale).select(origin_M.to(device))


class _Classifiers:
    """Weights and momenta, and the buffers of a step: allocating them anew would cost as much as the arithmetic.

    Logits have the images of a batch innermost: reductions over C then run along long rows, twice as fast.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        losses: Sequence[Loss],
        settings: Probe,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shape = (classes, len(losses))
        self.weight_decay = settings.weight_decay
        wide = torch.promote_types(dtype, torch.float32)  # bfloat16 sums would lose small updates
        self.alpha_M1, self.beta_M1 = torch.tensor(losses, dtype=wide, device=device).T.unsqueeze(-1)
        self.plain = set(losses) == {CROSS_ENTROPY}
        rows = classes * len(losses)
        self.weight_KD = torch.zeros(rows, dim, dtype=wide, device=device)
        self.bias_K1 = torch.zeros(rows, 1, dtype=wide, device=device)
        self.weight_momentum_KD, self.bias_momentum_K1 = self.weight_KD.clone(), self.bias_K1.clone()
        # "low": in the precision of the products; where that is the weights' own, the same memory
        self.weight_low_KD = self.weight_KD.to(dtype)
        self.gradient_KD = torch.empty(rows, dim, dtype=dtype, device=device)
        self.p = torch.empty(rows * settings.batch_size, dtype=wide, device=device)
        self.logits = torch.empty_like(self.p)
        self.logits_low = self.logits.to(dtype)
        self.minus_one = torch.full((1, 1, 1), -1.0, dtype=wide, device=device)

    def step(self, x_BD: torch.Tensor, labels_MB: torch.Tensor, learning_rate: float) -> None:
        """One step of SGD."""
        rows, count = len(self.bias_K1), len(x_BD)
        low_KB, logits_KB, p_KB = (
            flat[: rows * count].view(rows, count) for flat in (self.logits_low, self.logits, self.p)
        )
        torch.mm(self.weight_low_KD, x_BD.T, out=low_KB)
        torch.add(low_KB, self.bias_K1, out=logits_KB)
        self._gradient(logits_KB.view(*self.shape, count), labels_MB, p_KB.view(*self.shape, count))
        self.bias_momentum_K1.mul_(MOMENTUM).add_(p_KB.sum(1, keepdim=True))
        self.bias_K1.sub_(self.bias_momentum_K1, alpha=learning_rate)

        low_KB.copy_(p_KB)
        torch.mm(low_KB, x_BD, out=self.gradient_KD)
        torch.add(self.gradient_KD, self.weight_momentum_KD, alpha=MOMENTUM, out=self.weight_momentum_KD)
        if self.weight_decay:
            self.weight_momentum_KD.add_(self.weight_KD, alpha=self.weight_decay)
        self.weight_KD.sub_(self.weight_momentum_KD, alpha=learning_rate)
        self.weight_low_KD.copy_(self.weight_KD)

    def _gradient(self, logits_CMB: torch.Tensor, labels_MB: torch.Tensor, p_CMB: torch.Tensor) -> None:
        """The gradient of the mean loss with respect to the logits, into ``p_CMB``: the formula of :class:`Loss`."""
        count, labels_1MB = labels_MB.shape[1], labels_MB.unsqueeze(0)
        softmax_into(p_CMB, logits_CMB, 0, count)
        p_label_1MB = None if self.plain else p_CMB.gather(0, labels_1MB)
        p_CMB.scatter_add_(0, labels_1MB, (self.minus_one / count).expand_as(labels_1MB))
        if p_label_1MB is not None:  # probabilities are divided by count, so that p_y is p_label * count
            p_CMB.mul_(self.alpha_M1 - self.beta_M1 * LOG_ZERO * count * p_label_1MB)

    def probes(self, scale: float) -> Probes:
        """The trained classifiers."""
        weight_CMD, bias_CM = self.weight_KD.view(*self.shape, -1), self.bias_K1.view(self.shape)
        return Probes(weight_CMD.transpose(0, 1).contiguous(), bias_CM.T.contiguous(), scale)


# One classifier, trained the plain way: the reference that those above must agree with and are timed against.

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def symmetric_cross_entropy(logits_BC: torch.Tensor, labels_B: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """The mean of ``alpha * H(q, p) + beta * H(p, q)``, where q is one-hot with its zeros raised to 1e-4."""
    p_BC = logits_BC.softmax(-1)
    q_BC = F.one_hot(labels_B, logits_BC.shape[1]).to(logits_BC.dtype)
    reverse = -(p_BC * q_BC.clamp(min=1e-4).log()).sum(-1).mean()
    return alpha * F.cross_entropy(logits_BC, labels_B) + beta * reverse


def plain_probe(
    x_ND: torch.Tensor,
    labels_N: torch.Tensor,
    classes: int,
    orders: Orders,
    settings: Probe,
    criterion: Criterion = F.cross_entropy,
) -> nn.Linear:
    """Train one classifier on scaled features.

    Args:
        x_ND: features, in the precision of training.
        labels_N: ``int64``.
        classes: C.
        orders: the batches of each epoch.
        settings: epochs, batch size, learning rate, weight decay.
        criterion: of logits and labels.
    """
    probe = nn.Linear(x_ND.shape[1], classes, dtype=x_ND.dtype)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    groups: list[dict[str, Any]] = [
        {"params": [probe.weight], "weight_decay": settings.weight_decay},
        {"params": [probe.bias]},
    ]
    optimizer = torch.optim.SGD(groups, lr=settings.learning_rate, momentum=MOMENTUM)
    steps = settings.epochs * math.ceil(len(x_ND) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(settings.epochs):
        for indices_B in orders(epoch):
            optimizer.zero_grad()
            loss = criterion(probe(x_ND.index_select(0, indices_B)), labels_N.index_select(0, indices_B))
            loss.backward()
            optimizer.step()
            schedule.step()
    return probe
