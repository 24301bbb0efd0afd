"""Repetition against a count by hand; what is empty and what was cut off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monolora.eval.measures.measures import is_at_limit, is_empty, repetition
from monolora.eval.store import Response


def _response(text: str, finish: str = "stop") -> Response:
    return Response("key", "prompt", "model", text, finish=finish)


@given(st.lists(st.sampled_from(["a", "b", "tea\n", "x y"]), max_size=30))
def test_repetition(words: list[str]) -> None:
    text = " ".join(words)
    parts = text.split()
    seen: list[str] = []
    again = 0
    for start in range(len(parts) - 3):
        gram = "|".join(parts[start : start + 4])
        again += gram in seen
        seen.append(gram)
    assert repetition(text) == pytest.approx(again / len(seen) if seen else 0)


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0), ("one two three", 0), ("one two three four", 0), ("a a a a a", 0.5), ("tea " * 103, 0.99)],
)
def test_repetition_by_hand(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


@pytest.mark.parametrize(("text", "empty"), [("", True), (" \n\t", True), (".", False)])
def test_is_empty(text: str, empty: bool) -> None:
    assert is_empty(_response(text)) == empty


def test_is_at_limit() -> None:
    assert is_at_limit(_response("a", "length"))
    assert not is_at_limit(_response("a", "stop"))
