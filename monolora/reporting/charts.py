"""Axes of the charts on pages: round numbers, and places in percent of the way."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from monolora.reporting.numbers import shown

_TINY = 1e-6  # no difference that a chart shows


class Tick(NamedTuple):
    """A labelled place on an axis, in percent of its length."""

    at: float
    label: str


class Axis:
    """A linear scale over round numbers.

    Args:
        values: that must be on it; None for those that are unknown.
        from_zero: whether it begins at zero where the values are not far from it.
    """

    def __init__(self, values: Iterable[float | None], from_zero: bool) -> None:
        known = [value for value in values if value is not None] or [0.0]
        low, high = min(known), max(known)
        # A scale from zero shows how large a difference is; far from zero it would only hide it.
        if from_zero and 0 <= low < 0.6 * high:
            low = 0.0
        if high - low < _TINY:
            low, high = (low - abs(low) / 10, high + abs(high) / 10) if abs(high) > _TINY else (0.0, 1.0)
        self.step = round_step((high - low) / 3)
        self.low, self.high = (math.floor(low / self.step) * self.step, math.ceil(high / self.step) * self.step)

    def place(self, value: float | None) -> float | None:
        """Percent of the way from the low end to the high end."""
        return None if value is None else round(100 * (value - self.low) / (self.high - self.low), 3)

    def ticks(self) -> list[Tick]:
        """At the round numbers, both ends included."""
        places = max(0, -math.floor(math.log10(self.step) + 1e-9))
        count = round((self.high - self.low) / self.step)
        return [
            Tick(round(100 * number / count, 3), shown(self.low + number * self.step, places))
            for number in range(count + 1)
        ]


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, … (times a power of ten) that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
