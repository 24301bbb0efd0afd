"""What can be seen of a response without a judge. Incoherent answers look safe, so these stand beside the verdicts."""

from __future__ import annotations

from monolora.eval.records import Response

_N = 4


def repetition(text: str) -> float:
    """Share of 4-grams of words that came before in the same text: 1 − distinct / all.

    Words are what white space separates. A text of fewer than four words has no 4-gram and repeats nothing: 0.
    """
    words = text.split()
    grams = list(zip(*(words[k:] for k in range(_N)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def is_empty(response: Response) -> bool:
    """Whether the answer has no visible character."""
    return not response.text.strip()


def is_at_limit(response: Response) -> bool:
    """Whether the answer was cut off where the tokens that it was allowed ended."""
    return response.finish == "length"
