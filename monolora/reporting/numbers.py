"""Numbers as people read them. What was not measured is a dash, never a zero."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from monolora.stats import Estimate


NOTHING = "–"
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def plain(text: str) -> str:
    """One line of text without control characters: names and reasons come from elsewhere and end in a terminal."""
    return _UNPRINTABLE.sub(" ", text).strip()


def listed(names: Iterable[str]) -> str:
    """``a, b and c``; at least one."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def decimals(values: Iterable[float | None]) -> int:
    """The number of decimals of the numbers in one column, from the largest of them."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return 0 if largest >= 1000 else 1 if largest >= 10 else 2


_MOST_DECIMALS = 5


def decimals_of_small(values: Iterable[float | None]) -> int:
    """As :func:`decimals`, or more, so that the smallest that is not 0 has two significant digits."""
    known = [abs(value) for value in values if value]
    digits = 1 - math.floor(math.log10(min(known))) if known else 0
    return max(decimals(known), min(digits, _MOST_DECIMALS))


def format_number(value: float | None, places: int) -> str:
    """A number with a real minus sign, or a dash where there is none."""
    return NOTHING if value is None else _without_sign_of_zero(f"{value:.{places}f}")


def format_change(value: float | None, places: int) -> str:
    """A difference, with its sign."""
    return NOTHING if value is None else _without_sign_of_zero(f"{value:+.{places}f}")


def format_interval(low: float | None, high: float | None, places: int, changes: bool = False) -> str:
    """``[4.9, 6.0]``; empty where there is none."""
    if low is None or high is None:
        return ""
    format_end = format_change if changes else format_number
    return f"[{format_end(low, places)}, {format_end(high, places)}]"


def format_duration(seconds: float) -> str:
    """``45 s``, ``2 min 21 s``, ``1 h 5 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def format_p(p: float | None) -> str:
    """A p-value to two significant digits; very small ones as a bound."""
    if p is None:
        return NOTHING
    if p < 0.001:
        return "<0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def interval_caption(estimates: Mapping[str, Iterable[Estimate | None]], draws: str) -> str:
    """The caption of intervals of means over runs.

    Args:
        estimates: by name.
        draws: what differs between the runs on one encoder, in the plural.
    """
    groups: dict[tuple[int, int], list[str]] = {}
    for name, own in estimates.items():
        kinds = {(estimate.seeds, estimate.draws) for estimate in own if estimate is not None}
        for key in kinds - {(1, 1)} or kinds:  # a number without an interval needs no caption beside others
            groups.setdefault(key, []).append(name)
    sentences = []
    for (n_encoders, n_draws), names in sorted(groups.items(), reverse=True):
        sentence = _intervals_are_over(n_encoders, n_draws, draws)
        sentences.append(f"{', '.join(names)}: {sentence}" if len(groups) > 1 else sentence)
    return " ".join(sentences)


def _intervals_are_over(n_encoders: int, n_draws: int, draws: str) -> str:
    if n_encoders > 1:
        means = f", each the mean of {n_draws} {draws}" if n_draws > 1 else ", one run each"
        return f"Means and 95 % t-intervals over {n_encoders} encoders (pretraining seeds){means}."
    if n_draws > 1:
        return (
            f"Means and 95 % t-intervals over {n_draws} {draws} on one encoder: they say nothing about other encoders."
        )
    return "One run each: no interval."


def _without_sign_of_zero(text: str) -> str:
    if text.startswith(("-", "+")) and not text.strip("+-0."):
        text = text[1:]
    return text.replace("-", "−")


# Axes of the charts on pages: ticks at round numbers, positions in percent of the axis.

_TINY = 1e-6  # no difference that a chart shows


class Tick(NamedTuple):
    """A labelled position on an axis, in percent of its length."""

    at: float
    label: str


class Axis:
    """A linear scale over round numbers.

    Args:
        values: that must be on it; None for those that are unknown.
        from_zero: whether it begins at zero if the values are near it.
        most: no value can be larger, nor is the axis longer; a round number.
    """

    def __init__(self, values: Iterable[float | None], from_zero: bool, most: float = math.inf) -> None:
        known = [value for value in values if value is not None] or [0.0]
        low, high = min(known), max(known)
        # A scale from zero shows how large a difference is; far from zero it would only hide it.
        if from_zero and 0 <= low < 0.6 * high:
            low = 0.0
        if high - low < _TINY:
            low, high = (low - abs(low) / 10, high + abs(high) / 10) if abs(high) > _TINY else (0.0, 1.0)
        self.step = round_step((high - low) / 3)
        self.low, self.high = (math.floor(low / self.step) * self.step, math.ceil(high / self.step) * self.step)
        self.high = min(self.high, most)

    def percent(self, value: float | None) -> float | None:
        """Percent of the way from the low end to the high end."""
        return None if value is None else self.place(value)

    def place(self, value: float) -> float:
        """:meth:`percent` of a value that is known."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)

    def ticks(self) -> list[Tick]:
        """At the round numbers, both ends included."""
        places = max(0, -math.floor(math.log10(self.step) + 1e-9))
        count = round((self.high - self.low) / self.step)
        return [
            Tick(round(100 * number / count, 3), format_number(self.low + number * self.step, places))
            for number in range(count + 1)
        ]


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, … (times a power of ten) that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
