"""Numbers as people read them. What was not measured is a dash, never a zero."""

from __future__ import annotations

import re
from collections.abc import Iterable

NOTHING = "–"
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def plain(text: str) -> str:
    """One line of text without control characters: names and reasons come from elsewhere and end in a terminal."""
    return _UNPRINTABLE.sub(" ", text).strip()


def decimals(values: Iterable[float | None]) -> int:
    """How many decimals the numbers of one column are shown with, from the largest of them."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return 0 if largest >= 1000 else 1 if largest >= 10 else 2


def shown(value: float | None, places: int) -> str:
    """A number with a real minus sign, or a dash where there is none."""
    return NOTHING if value is None else _signed_zero_mended(f"{value:.{places}f}")


def shown_change(value: float | None, places: int) -> str:
    """A difference, with its sign."""
    return NOTHING if value is None else _signed_zero_mended(f"{value:+.{places}f}")


def shown_interval(low: float | None, high: float | None, places: int, changes: bool = False) -> str:
    """``[4.9, 6.0]``; empty where there is none."""
    if low is None or high is None:
        return ""
    show = shown_change if changes else shown
    return f"[{show(low, places)}, {show(high, places)}]"


def shown_p(p: float | None) -> str:
    """A p-value to two digits that count; very small ones as a bound."""
    if p is None:
        return NOTHING
    if p < 0.001:
        return "<0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _signed_zero_mended(text: str) -> str:
    if text.startswith(("-", "+")) and not text.strip("+-0."):
        text = text[1:]
    return text.replace("-", "−")
