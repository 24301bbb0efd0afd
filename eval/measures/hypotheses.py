"""Tests for flags, and intervals for shares."""

from __future__ import annotations

from typing import NamedTuple

from scipy.stats import binomtest


class Interval(NamedTuple):
    """Ends of a 95 % interval, in the unit of what it is of."""

    low: float
    high: float


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p-value of McNemar's test.

    Args:
        gained: prompts that only the first of two models has the flag on.
        lost: prompts that only the second has it on.
    """
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def wilson(count: int, n: int) -> Interval:
    """Wilson's 95 % interval of a share, from 0 to 1.

    It stands in for the bootstrap where all of n flags are the same: every resample is then a copy of the sample, and
    an interval of no width would claim that 0 of 20 is known as well as 0 of 20,000.
    """
    found = binomtest(count, n).proportion_ci(method="wilson")
    return Interval(float(found.low), float(found.high))
