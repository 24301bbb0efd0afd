"""One linear classifier, trained as anyone would write it: what the batched ones must agree with, and are timed by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from monolora.recipes.vision.settings import Probe

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def symmetric_cross_entropy(logits_BC: torch.Tensor, labels_B: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """The mean of ``alpha * H(q, p) + beta * H(p, q)``, q being one-hot with its zeros raised to 1e-4."""
    p_BC = logits_BC.softmax(-1)
    q_BC = F.one_hot(labels_B, logits_BC.shape[1]).to(logits_BC.dtype)
    reverse = -(p_BC * q_BC.clamp(min=1e-4).log()).sum(-1).mean()
    return alpha * F.cross_entropy(logits_BC, labels_B) + beta * reverse


def plain_probe(
    x_ND: torch.Tensor,
    labels_N: torch.Tensor,
    classes: int,
    orders: Callable[[int], Iterable[torch.Tensor]],
    settings: Probe,
    criterion: Criterion = F.cross_entropy,
) -> nn.Linear:
    """Train on scaled features.

    Args:
        x_ND: features, in the precision to work in.
        labels_N: of this classifier.
        classes: C.
        orders: the batches of an epoch, as places.
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
    optimizer = torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9)
    steps = settings.epochs * math.ceil(len(x_ND) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(settings.epochs):
        for places_B in orders(epoch):
            optimizer.zero_grad()
            loss = criterion(probe(x_ND.index_select(0, places_B)), labels_N.index_select(0, places_B))
            loss.backward()
            optimizer.step()
            schedule.step()
    return probe
