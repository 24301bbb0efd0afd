"""Integrals over the joint distribution, against quadrature."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from monolora.recipes.superposition.theory.moments import partial_moment, raw_moment


def by_quadrature(S: float, i: int, j: int) -> float:
    """E[x1^i x2^j; x1 > x2 or a coin at the origin]."""
    q = 1 - S
    both = integrate.dblquad(lambda x2, x1: x1**i * x2**j, 0, 1, 0, lambda x1: x1)[0]
    one = integrate.quad(lambda x1: x1**i, 0, 1)[0] if j == 0 else 0.0
    return S**2 / 2 * (i == j == 0) + q * S * one + q**2 * both


@pytest.mark.parametrize("S", [Fraction(0), Fraction(1, 3), Fraction(9, 10)])
@pytest.mark.parametrize(("i", "j"), [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (3, 1)])
def test_against_quadrature(S: Fraction, i: int, j: int) -> None:
    assert float(partial_moment(S, i, j, 1)) == pytest.approx(by_quadrature(float(S), i, j), abs=1e-9)
    assert partial_moment(S, i, j, 0) == partial_moment(S, j, i, 1)


@given(S=st.fractions(0, Fraction(99, 100), max_denominator=100))
@settings(deadline=None)
def test_both_labels_together_are_all(S: Fraction) -> None:
    assert partial_moment(S, 0, 0, 1) == partial_moment(S, 0, 0, 0) == Fraction(1, 2)
    for power in range(1, 5):
        whole = sum(partial_moment(S, power, 0, label) for label in (0, 1))
        assert whole == (1 - S) / (power + 1)  # of a feature that is uniform where it is active


def test_powers_of_a_sum() -> None:
    S, (a, b) = Fraction(1, 4), (Fraction(2), Fraction(-3))
    by_hand = (
        a**2 * partial_moment(S, 2, 0, 1) + 2 * a * b * partial_moment(S, 1, 1, 1) + b**2 * partial_moment(S, 0, 2, 1)
    )
    assert raw_moment(S, (a, b), 2, 1) == by_hand
