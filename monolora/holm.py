"""The correction for many tests."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected by Holm's step-down method (1979): the chance of even one false finding stays below them.

    Args:
        p_values: of the whole family of tests.
    """
    n = len(p_values)
    corrected = [1.0] * n
    largest = 0.0
    for rank, k in enumerate(sorted(range(n), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (n - rank) * p_values[k]))
        corrected[k] = largest
    return corrected
