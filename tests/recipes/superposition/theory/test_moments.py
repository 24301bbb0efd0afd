"""Closed forms of means and variances: against the formulas one by one, the joint distribution, and their own laws."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.errors import InputError
from monolora.recipes.superposition.theory.moments import (
    REPRESENTATIONS,
    Moments,
    conditional_moments,
    feature_gap,
    feature_variance,
    joint_moments,
    noisy_moments,
    summed_variances,
    under_input_noise,
    under_label_noise,
)

SPARSITIES = st.fractions(0, Fraction(99, 100), max_denominator=100)
ETAS = st.fractions(0, 1, max_denominator=50)
EPSILONS = st.fractions(0, 5, max_denominator=20)
WEIGHTS = st.tuples(st.fractions(-3, 3, max_denominator=10), st.fractions(-3, 3, max_denominator=10)).filter(any)
NAMES = st.sampled_from(["mono", "poly"])


@given(S=SPARSITIES)
@settings(deadline=None)
def test_the_papers_representations(S: Fraction) -> None:
    """Theorems B.1 and B.3, written out."""
    q = 1 - S
    D, T = q * (1 + 2 * S) / 3, q / 3 - q**2 / 4
    mu1, mu0 = q * (2 + S) / 3, q**2 / 3
    assert conditional_moments(S, "mono") == (mu1, mu0, q * (3 + S) / 6 - mu1**2, q**2 / 6 - mu0**2)
    assert conditional_moments(S, "poly") == (D, -D, q * (1 + 3 * S) / 6 - D**2, q * (1 + 3 * S) / 6 - D**2)
    assert (feature_gap(S), feature_variance(S)) == (D, T)
    assert conditional_moments(S, "mono").gap == D
    assert conditional_moments(S, "poly").gap == 2 * D


@given(S=SPARSITIES, weights=WEIGHTS, eta=ETAS, epsilon=EPSILONS)
@settings(deadline=None)
def test_every_linear_representation_is_that_of_the_joint_distribution(
    S: Fraction, weights: tuple[Fraction, Fraction], eta: Fraction, epsilon: Fraction
) -> None:
    assert noisy_moments(S, weights, eta, epsilon) == joint_moments(S, weights, eta, epsilon)


@given(S=SPARSITIES, weights=WEIGHTS, eta=ETAS)
@settings(deadline=None)
def test_the_identity_on_summed_variances(S: Fraction, weights: tuple[Fraction, Fraction], eta: Fraction) -> None:
    assert summed_variances(S, weights, eta) == noisy_moments(S, weights, eta).spread
    r, D, T = 1 - 2 * eta, feature_gap(S), feature_variance(S)
    assert summed_variances(S, "mono", eta) == 2 * T - r**2 * D**2 / 2
    assert summed_variances(S, "poly", eta) == 4 * T - 2 * r**2 * D**2


def swapped(moments: Moments) -> Moments:
    return Moments(moments.mu0, moments.mu1, moments.v0, moments.v1)


@given(S=SPARSITIES, weights=WEIGHTS, eta=ETAS)
@settings(deadline=None)
def test_symmetries(S: Fraction, weights: tuple[Fraction, Fraction], eta: Fraction) -> None:
    a, b = weights
    moments = noisy_moments(S, (a, b), eta)
    assert noisy_moments(S, (a, b), 1 - eta) == swapped(moments)  # all labels turned round
    assert noisy_moments(S, (b, a), eta) == swapped(moments)  # x1 and x2 are alike
    assert noisy_moments(S, (-a, -b), eta) == (-moments.mu1, -moments.mu0, moments.v1, moments.v0)
    assert noisy_moments(S, (3 * a, 3 * b), eta) == (3 * moments.mu1, 3 * moments.mu0, 9 * moments.v1, 9 * moments.v0)


@given(S=SPARSITIES, weights=WEIGHTS, first=ETAS, second=ETAS, epsilon=EPSILONS)
@settings(deadline=None)
def test_noise_on_noise(
    S: Fraction, weights: tuple[Fraction, Fraction], first: Fraction, second: Fraction, epsilon: Fraction
) -> None:
    clean = conditional_moments(S, weights)
    twice = under_label_noise(under_label_noise(clean, first), second)
    assert twice == under_label_noise(clean, first + second - 2 * first * second)
    one_way = under_input_noise(under_label_noise(clean, first), epsilon, weights)
    assert one_way == under_label_noise(under_input_noise(clean, epsilon, weights), first)


@given(S=SPARSITIES, name=NAMES, etas=st.tuples(ETAS, ETAS), epsilons=st.tuples(EPSILONS, EPSILONS))
@settings(deadline=None)
def test_more_noise_less_gap_more_variance(S: Fraction, name: str, etas: Any, epsilons: Any) -> None:
    less, more = sorted(eta / 2 for eta in etas)
    assert noisy_moments(S, name, less).gap >= noisy_moments(S, name, more).gap >= 0
    assert noisy_moments(S, name, less).spread <= noisy_moments(S, name, more).spread
    low, high = sorted(epsilons)
    assert noisy_moments(S, name, 0, low).gap == noisy_moments(S, name, 0, high).gap
    assert noisy_moments(S, name, 0, low).v1 <= noisy_moments(S, name, 0, high).v1


@given(S=SPARSITIES)
@settings(deadline=None)
def test_half_the_labels_wrong_say_nothing(S: Fraction) -> None:
    for name, factor in (("mono", 1), ("poly", 2)):
        moments = noisy_moments(S, name, Fraction(1, 2))
        assert moments.gap == 0
        assert moments.v1 == moments.v0 == factor * feature_variance(S)


def test_dense_features() -> None:
    """S = 0: the larger of two uniform numbers is Beta(2, 1), the smaller Beta(1, 2), their distance Beta(1, 2)."""
    assert conditional_moments(0, "mono") == (Fraction(2, 3), Fraction(1, 3), Fraction(1, 18), Fraction(1, 18))
    assert conditional_moments(0, "poly") == (Fraction(1, 3), Fraction(-1, 3), Fraction(1, 18), Fraction(1, 18))


def test_limits_in_sparsity() -> None:
    S = sympy.Symbol("S")
    for name, dense in (("mono", Fraction(1, 3)), ("poly", Fraction(2, 3))):
        moments = conditional_moments(S, name)
        assert sympy.limit(moments.gap, S, 0) == sympy.Rational(dense.numerator, dense.denominator)
        assert sympy.limit(moments.gap / (1 - S), S, 1) == (1 if name == "mono" else 2)
        assert sympy.limit(moments.spread / (1 - S), S, 1) == (
            sympy.Rational(2, 3) if name == "mono" else sympy.Rational(4, 3)
        )
    assert [conditional_moments(value, "mono") for value in (0.0, 1e-12)] == [
        pytest.approx(tuple(map(float, conditional_moments(0, "mono"))), abs=1e-9)
    ] * 2


@given(S=SPARSITIES, name=st.sampled_from(list(REPRESENTATIONS)), eta=ETAS, epsilon=EPSILONS)
@settings(deadline=None)
def test_floats_give_what_exact_numbers_give(S: Fraction, name: str, eta: Fraction, epsilon: Fraction) -> None:
    in_floats = noisy_moments(float(S), name, float(eta), float(epsilon))
    assert all(isinstance(value, float) for value in in_floats)
    assert in_floats == pytest.approx(tuple(map(float, noisy_moments(S, name, eta, epsilon))), abs=1e-12)


def test_arrays_give_arrays() -> None:
    sparsities, etas = np.array([0.0, 0.5, 0.9]), np.array([0.1, 0.2, 0.3])
    moments = noisy_moments(sparsities, "mono", etas, 0.5)
    for index, (S, eta) in enumerate(zip(sparsities, etas, strict=True)):
        assert [values[index] for values in moments] == pytest.approx(list(noisy_moments(S, "mono", eta, 0.5)))
    with pytest.raises(InputError, match="sparsity S"):
        noisy_moments(np.array([0.5, 1.0]), "mono")


def test_whole_numbers_stay_exact() -> None:
    assert all(isinstance(value, Fraction) for value in noisy_moments(0, (2, -1), 1, 3))


@pytest.mark.parametrize("S", [-0.1, 1, 1.5, float("nan"), Fraction(-1, 9)])
def test_no_sparsity(S: Any) -> None:
    for formula in (feature_gap, feature_variance, lambda S: conditional_moments(S, "mono")):
        with pytest.raises(InputError, match="sparsity S must be 0 or more and below 1"):
            formula(S)


@pytest.mark.parametrize(("eta", "epsilon"), [(-0.1, 0), (1.1, 0), (float("nan"), 0), (0, -1), (0, float("inf"))])
def test_no_noise(eta: float, epsilon: float) -> None:
    with pytest.raises(InputError, match="noise must be"):
        noisy_moments(0.5, "mono", eta, epsilon)


def test_no_representation() -> None:
    with pytest.raises(InputError, match="Did you mean mono"):
        conditional_moments(0.5, "monos")
