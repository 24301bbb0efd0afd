"""How fine the bins of text means are, and which tokens of a text count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monolora.explain.contexts import MOST_BITS, ROOM, Text, text_bins
from monolora.explain.histograms import Bins


@given(st.integers(1, 40_000), st.integers(0, 60), st.booleans())
def test_bins_are_as_fine_as_there_is_room_for(units: int, groups: int, signed: bool) -> None:
    bins = text_bins(units, groups, signed)
    counts = units * (groups + 1)
    assert bins.bits == 0 or counts * bins.number <= ROOM
    assert bins.bits == MOST_BITS or counts * Bins(signed, bins.bits + 1).number > ROOM


def test_a_large_adapter_and_many_labels_fit() -> None:
    for units, groups, signed in ((14_336, 50, True), (26_000, 50, True), (50_000, 50, False)):
        assert units * (groups + 1) * text_bins(units, groups, signed).number * 4 <= 268.5e6


@pytest.mark.parametrize("start", [-1, 0, 2, 5])
@pytest.mark.parametrize("stop", [-1, 0, 2, 5, 2**31])
@pytest.mark.parametrize("length", [0, 3, 6])
def test_places_that_count(start: int, stop: int, length: int) -> None:
    counted = Text(0, [7] * length, start, stop).counted
    assert list(counted) == [place for place in range(length) if start <= place < stop]
