"""Holm's correction against its definition."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.stats import holm

p_values = st.lists(st.floats(0, 1), max_size=7)


@settings(deadline=None)
@given(p_values)
def test_holm_is_closed_testing(values: list[float]) -> None:
    """A hypothesis falls if every family that it is in falls by Bonferroni: its p is the largest of these."""
    places = range(len(values))
    families = [family for size in range(1, len(values) + 1) for family in combinations(places, size)]
    expected = [
        max(min(1.0, len(family) * min(values[k] for k in family)) for family in families if place in family)
        for place in places
    ]
    assert holm(values) == pytest.approx(expected)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
