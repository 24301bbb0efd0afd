"""Replay: how many rows, of which anchors, and what of them is learned."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monolora.data.chat_template import IGNORED
from monolora.errors import InputError
from monolora.keep.anchors import Anchor, Anchors
from monolora.keep.replay import Replay

ANCHORS = Anchors(train=tuple(Anchor([2, number], [number, 1]) for number in range(10, 17)), held_out=())


@given(st.integers(1, 2000), st.floats(0.01, 0.9))
def test_the_weight_is_the_share_of_all_rows(task_rows: int, share: float) -> None:
    """To the nearest row, and at least one."""
    rows = Replay(share).rows(ANCHORS, task_rows, 0)
    assert abs(len(rows) - share * (task_rows + len(rows))) <= 1


def test_every_anchor_comes_before_any_comes_again() -> None:
    """In an order of the seed."""
    rows = Replay(0.5).rows(ANCHORS, 15, 3)
    contexts = [row["input_ids"][1] for row in rows]
    assert sorted(contexts[:7]) == sorted(contexts[7:14]) == list(range(10, 17))
    assert Replay(0.5).rows(ANCHORS, 15, 3) == rows
    assert Replay(0.5).rows(ANCHORS, 15, 4) != rows


def test_answers_are_learned_and_prompts_are_not() -> None:
    """The base's own answer, end token and all."""
    row = Replay(0.1).rows(ANCHORS, 9, 0)[0]
    number = row["input_ids"][1]
    assert row == {"input_ids": [2, number, number, 1], "labels": [IGNORED, IGNORED, number, 1]}


def test_a_share_of_all_rows_is_refused() -> None:
    """There would be no task."""
    with pytest.raises(InputError, match="below 1"):
        Replay(1.0).rows(ANCHORS, 10, 0)
