"""How far two judges agree beyond chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def kappa(a: NDArray[np.bool_], b: NDArray[np.bool_], weights: NDArray[np.float64]) -> float | None:
    """Cohen's kappa of two judges' flags.

    Args:
        a: flags of the one judge, shape ``(N,)``.
        b: flags of the other on the same responses.
        weights: how many rows each response stands for.

    Returns:
        1 for full agreement, 0 for what chance gives. None where chance alone agrees always: no responses, or both
        judges gave all of them the same flag. Nothing is known then about how they would differ.
    """
    total = weights.sum()
    if not total:
        return None
    share_a, share_b = weights @ a / total, weights @ b / total
    by_chance = share_a * share_b + (1 - share_a) * (1 - share_b)
    if by_chance == 1:
        return None
    return float((weights @ (a == b) / total - by_chance) / (1 - by_chance))
