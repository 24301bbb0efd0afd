"""What a judge reads of a response, in token ids; and what it cannot read."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from transformers import PreTrainedTokenizerBase

TOO_LONG = "prompt too long"


class Readable(NamedTuple):
    """One response.

    Attributes:
        key: of the judgement.
        calls: token ids, one list a forward pass.
        cut: whether the end of the response had to be left out.
    """

    key: str
    calls: list[list[int]]
    cut: bool


class Unreadable(NamedTuple):
    """A response that this judge cannot read.

    Attributes:
        key: of the judgement.
        reason: why the judgement is invalid.
    """

    key: str
    reason: str


class Reader(Protocol):
    """A judge's format: from texts to token ids, and from logits to scores."""

    def read(self, items: Sequence[Mapping[str, Any]]) -> list[Readable | Unreadable]:
        """Items have ``key``, ``prompt`` and ``response``."""

    def scores(self, logits: Sequence[Sequence[float]]) -> dict[str, float]:
        """From the logits of each call of one response."""


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """All at once, which is several times faster; with the tokenizer's own special tokens, and uncut."""
    # verbose: a text that is longer than the tokenizer's own limit is seen to elsewhere
    return tokenizer(list(texts), verbose=False)["input_ids"] if texts else []


def longest_that_fits(response: str, fits: Callable[[str], bool]) -> str | None:
    """The longest beginning of a response that fits, or None if not one character of it does."""
    characters = bisect.bisect_left(range(1, len(response) + 1), True, key=lambda end: not fits(response[:end]))
    return response[:characters] if characters else None
