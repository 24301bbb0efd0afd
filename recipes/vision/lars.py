"""LARS with the clipping that the paper's code uses: pytorch-optimizer's LARS, its trust coefficient bounded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pytorch_optimizer import LARS
from torch import nn


class ClippedLars(LARS):
    """SGD with momentum whose step for each weight is at most ``trust`` of the weight's norm.

    The learning rate of a weight is ``min(trust * |w| / (|g| + decay * |w|), lr)``: plain SGD's until a step would be
    too large for its weight. Biases and norms (one dimension) step as in plain SGD, without decay.

    Args:
        parameters: those with ``requires_grad``.
        lr: the largest learning rate of any weight.
        momentum, weight_decay: as in SGD.
        trust: LARS's trust coefficient, eta.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float, trust: float
    ) -> None:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        self._weights = [parameter for parameter in trained if parameter.ndim > 1]
        self._trust, self._decay = trust, weight_decay
        # A group for each weight, as the bound is of each weight's own.
        groups = [{"params": [each for each in trained if each.ndim <= 1]}]
        groups += [{"params": [weight]} for weight in self._weights]
        super().__init__(
            [group for group in groups if group["params"]], lr=lr, momentum=momentum, weight_decay=weight_decay
        )

    def set_lr(self, lr: float) -> None:
        """For the steps from now on."""
        for group in self.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; parameters without a gradient stay as they are."""
        self._bound_trust()
        return super().step(closure)

    def _bound_trust(self) -> None:
        """The coefficient c that makes LARS's ``lr * c * |w| / (|g| + decay * |w|)`` the bounded learning rate."""
        by_weight = {id(group["params"][0]): group for group in self.param_groups}
        weights = [weight for weight in self._weights if weight.grad is not None]
        if not weights:
            return
        norms = torch.stack(torch._foreach_norm(tuple(weights)))
        gradients = torch.stack(torch._foreach_norm(tuple(each.grad for each in weights if each.grad is not None)))
        most = self._trust / max(self.param_groups[0]["lr"], 1e-12)
        coefficients = ((gradients + self._decay * norms) / norms).clamp(max=most)
        for weight, coefficient in zip(weights, coefficients.unbind(), strict=True):
            by_weight[id(weight)]["trust_coefficient"] = coefficient
