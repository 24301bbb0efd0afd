"""From logits to probabilities, in double precision."""

from __future__ import annotations

import math
from collections.abc import Sequence


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), also where that power overflows."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1 + power)


def softmax(logits: Sequence[float]) -> list[float]:
    """exp(logit) over the sum of all of them, also where the powers overflow."""
    largest = max(logits)
    powers = [math.exp(logit - largest) for logit in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]
