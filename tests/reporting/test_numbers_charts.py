"""Axes are round, and hold every value."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.reporting.numbers import Axis


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=5))
@settings(deadline=None)
def test_any_values_are_within_an_axis_of_few_round_ticks(values: list[float]) -> None:
    axis = Axis(values, from_zero=True)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 8
    assert [tick.at for tick in ticks] == sorted(tick.at for tick in ticks)
    assert len({tick.label for tick in ticks}) == len(ticks)
    assert all(-1e-6 <= axis.percent(value) <= 100 + 1e-6 for value in values)
