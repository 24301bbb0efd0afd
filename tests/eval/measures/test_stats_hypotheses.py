"""Tests of flags and Holm's correction against their definitions."""

from __future__ import annotations

from itertools import combinations
from math import comb, sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from monolora.eval.measures.hypotheses import holm, mcnemar, wilson


@settings(deadline=None)
@given(gained=st.integers(0, 60), lost=st.integers(0, 60))
def test_mcnemar(gained: int, lost: int) -> None:
    n = gained + lost
    tail = sum(comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_mcnemar_without_a_change() -> None:
    assert mcnemar(0, 0) == 1


@settings(deadline=None)
@given(count=st.integers(0, 50), more=st.integers(0, 50))
def test_wilson(count: int, more: int) -> None:
    n = count + more
    if not n:
        return
    z, p = norm.ppf(0.975), count / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert wilson(count, n) == pytest.approx((max(0, middle - half), min(1, middle + half)), abs=1e-12)


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
