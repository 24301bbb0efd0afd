"""Tests of flags against their definitions."""

from __future__ import annotations

from math import comb, sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from monolora.stats import mcnemar, wilson


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
