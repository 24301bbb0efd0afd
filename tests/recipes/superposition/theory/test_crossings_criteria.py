"""The criteria J: their formulas as they are shown, what scaling does to them, and which feature is the best."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.errors import InputError
from monolora.recipes.superposition.theory.crossings import CRITERIA, separability
from monolora.recipes.superposition.theory.moments import noisy_moments

POSITIVE = st.fractions(Fraction(1, 10), 3, max_denominator=20)
SPARSITIES = st.fractions(0, Fraction(95, 100), max_denominator=100)
ETAS = st.fractions(0, Fraction(49, 100), max_denominator=100)
EPSILONS = st.fractions(0, 3, max_denominator=20)


@pytest.mark.parametrize("name", CRITERIA)
@given(gap=POSITIVE, v1=POSITIVE, v0=POSITIVE)
@settings(deadline=None, max_examples=25)
def test_the_formula_shown_is_the_formula(name: str, gap: Fraction, v1: Fraction, v0: Fraction) -> None:
    shown = CRITERIA[name].formula.replace("²", "**2").replace("⁴", "**4").replace("v1 v0", "v1 * v0")
    assert CRITERIA[name].value(gap, v1, v0) == eval(shown, {"gap": gap, "v1": v1, "v0": v0})


@pytest.mark.parametrize("name", CRITERIA)
def test_scale(name: str) -> None:
    """Only a scale-free criterion says of c h what it says of h."""
    for S in (0, Fraction(1, 2), Fraction(9, 10)):
        same = separability(S, (1, -1), name, Fraction(1, 5)) == separability(S, (2, -2), name, Fraction(1, 5))
        assert same == CRITERIA[name].scale_free


@given(S=SPARSITIES, eta=ETAS, epsilon=EPSILONS, weights=st.tuples(st.integers(-9, 9), st.integers(-9, 9)).filter(any))
@settings(deadline=None)
def test_no_linear_feature_beats_poly_by_fishers_ratio(
    S: Fraction, eta: Fraction, epsilon: Fraction, weights: tuple[int, int]
) -> None:
    """Fisher's direction is (1, -1) by symmetry, at every sparsity and noise: there is nothing for mono to win."""
    assert separability(S, weights, "fisher", eta, epsilon) <= separability(S, "poly", "fisher", eta, epsilon)


@given(S=SPARSITIES, name=st.sampled_from(["mono", "poly"]), etas=st.tuples(ETAS, ETAS), epsilon=EPSILONS)
@settings(deadline=None)
def test_noise_never_helps(S: Fraction, name: str, etas: tuple[Fraction, Fraction], epsilon: Fraction) -> None:
    less, more = sorted(etas)
    for criterion in CRITERIA:
        assert separability(S, name, criterion, less) >= separability(S, name, criterion, more)
        assert separability(S, name, criterion, less) >= separability(S, name, criterion, less, epsilon)


def test_separability_is_of_the_noisy_moments() -> None:
    moments = noisy_moments(Fraction(1, 2), "mono", Fraction(1, 4), 2)
    expected = moments.gap**2 / moments.spread
    assert separability(Fraction(1, 2), "mono", "fisher", Fraction(1, 4), 2) == expected


def test_no_criterion() -> None:
    with pytest.raises(InputError, match="Did you mean fisher"):
        separability(0.5, "mono", "fischer")
