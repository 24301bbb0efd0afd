"""Columns of how the responses are written."""

from __future__ import annotations

from collections.abc import Iterator

from monolora.eval.measures.columns import BOOTSTRAP, MCNEMAR, Column, Measured
from monolora.eval.measures.gathered import Gathered
from monolora.eval.measures.text import is_empty, repetition


def writing_columns(found: Gathered) -> Iterator[Measured]:
    """Length, share of repeated 4-grams, empty answers."""
    name = found.set.name
    length = Column(f"{name}/length", "length", name, name, unit="tokens", test=BOOTSTRAP)
    yield found.measured(length, found.of_responses(lambda _, response: float(response.tokens)))
    repeated = Column(f"{name}/repetition", "repetition", name, name, better="lower", test=BOOTSTRAP)
    yield found.measured(repeated, found.of_responses(lambda _, response: 100 * repetition(response.text)))
    empty = Column(f"{name}/empty", "empty", name, name, better="lower", test=MCNEMAR)
    yield found.measured(empty, found.of_responses(lambda _, response: 100.0 * is_empty(response)))
