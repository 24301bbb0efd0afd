"""Where mono and poly swap places: exact, and as a plain scan of J finds it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.errors import InputError
from monolora.recipes.superposition.theory.crossings import (
    CRITERIA,
    OVERTAKES,
    S_SYMBOL,
    X_SYMBOL,
    Noise,
    crossover,
    numerator,
    separability,
    verdicts,
)
from monolora.recipes.superposition.theory.moments import SAME_LENGTH, Representation, weights_of

HALF = Fraction(1, 2)
NOISES: tuple[Noise, Noise] = ("label", "input")


def ahead(S: Fraction, name: str, noise: Noise, value: float, poly: Representation) -> float:
    """J_mono - J_poly in floats."""
    noisy = {"eta": value} if noise == "label" else {"epsilon": value}
    mono_is, poly_is = (separability(float(S), weights, name, **noisy) for weights in ("mono", poly))
    return float(mono_is) - float(poly_is)


@pytest.mark.parametrize("name", ["difference", "squared-difference"])
def test_a_quarter_of_the_labels_at_half_sparsity(name: str) -> None:
    """Both difference forms cross at eta = 1/4 when S = 1/2."""
    assert crossover(HALF, name) == (OVERTAKES, (sympy.Rational(1, 4),))
    assert crossover(0.5, name) == crossover(HALF, name)


def test_no_other_criterion_says_a_quarter() -> None:
    """Of all, with the pair as in the paper or as long as mono: which let mono overtake at 1/4, and at which S."""
    quarter = {X_SYMBOL: sympy.Rational(1, 2)}  # r = 1 - 2 eta
    at = {}
    for poly in ("poly", SAME_LENGTH):
        for name in CRITERIA:
            p = numerator(name, "label", weights_of("mono"), weights_of(poly)).as_expr().subs(quarter)
            roots = {root for root in sympy.roots(sympy.Poly(p, S_SYMBOL)) if root.is_real and 0 <= root < 1}
            at[poly, name] = {S for S in roots if crossover(S, name, poly=poly).leaders == OVERTAKES}
    assert {key for key, where in at.items() if where} == {("poly", "difference"), ("poly", "squared-difference")}
    assert at["poly", "difference"] == at["poly", "squared-difference"] == {sympy.Rational(1, 2)}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", ["fisher", "ratio"])
@given(S=st.fractions(0, Fraction(99, 100), max_denominator=100))
@settings(deadline=None, max_examples=20)
def test_never_by_fishers_ratios(name: str, noise: Noise, S: Fraction) -> None:
    assert crossover(S, name, noise) == (("poly",), ())


def test_input_noise_by_hand() -> None:
    """gap - (v1 + v0): D - 2T + 3D²/2 = 2 epsilon²."""
    S = Fraction(1, 2)
    D, T = Fraction(1, 3), Fraction(5, 48)
    (epsilon,) = crossover(S, "difference", "input").at
    squared = (D - 2 * T + 3 * D**2 / 2) / 2
    assert sympy.simplify(epsilon**2) == sympy.Rational(squared.numerator, squared.denominator)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", CRITERIA)
@given(S=st.fractions(0, Fraction(39, 40), max_denominator=40))
@settings(deadline=None, max_examples=12)
def test_a_scan_finds_the_same(name: str, noise: Noise, S: Fraction) -> None:
    crossing = crossover(S, name, noise)
    at = [float(level) for level in crossing.at]
    assert at == sorted(at)
    assert len(crossing.leaders) == len(at) + 1
    for value in np.linspace(0, 0.499 if noise == "label" else 3, 60):
        if min((abs(value - level) for level in at), default=1) < 1e-4:
            continue
        leader = crossing.leaders[sum(value > level for level in at)]
        lead = ahead(S, name, noise, float(value), "poly")
        assert (lead > 0) == (leader == "mono"), (value, lead, crossing)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", ["difference", "product", "fisher-geometric"])
def test_at_a_crossover_both_are_equal(name: str, noise: Noise) -> None:
    S = Fraction(9, 10) if name == "fisher-geometric" else Fraction(1, 5)
    (at,) = crossover(S, name, noise).at
    noisy = {"eta": at} if noise == "label" else {"epsilon": at}
    exact_S = sympy.Rational(S.numerator, S.denominator)
    assert (
        sympy.simplify(separability(exact_S, "mono", name, **noisy) - separability(exact_S, "poly", name, **noisy)) == 0
    )


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", ["difference", "product", "squared-product"])
def test_features_of_the_same_length(name: str, noise: Noise) -> None:
    """Weights with a square root in them stay exact; the scan agrees."""
    for S in (Fraction(1, 5), Fraction(9, 10)):
        crossing = crossover(S, name, noise, poly=SAME_LENGTH)
        assert crossing.leaders in (("poly",), ("mono", "poly"))
        for value in (0.0, 0.05, 0.25, 0.45):
            leader = crossing.leaders[sum(value > float(level) for level in crossing.at)]
            assert (ahead(S, name, noise, value, (0.5**0.5, -(0.5**0.5))) > 0) == (leader == "mono")


@pytest.mark.parametrize("S", [0.9999, 1e-9, 0.1 + 0.2, Fraction(10**30 - 1, 10**30), Fraction(123456789, 987654321)])
def test_odd_sparsities(S: float | Fraction) -> None:
    crossing = crossover(S, "difference")
    assert crossing.leaders == OVERTAKES
    (at,) = map(float, crossing.at)
    assert 0.1 < at < 0.3


def test_as_near_as_wanted_to_where_the_pattern_changes() -> None:
    edge = Fraction(str(sympy.N(verdicts("fisher-geometric")[0].high, 60)))
    assert crossover(edge - Fraction(1, 10**40), "fisher-geometric").leaders == ("poly",)
    crossing = crossover(edge + Fraction(1, 10**40), "fisher-geometric")
    assert crossing.leaders == ("mono", "poly")
    assert 0 < sympy.N(crossing.at[0], 30) < 1e-40


def test_a_feature_beside_itself_is_tied() -> None:
    assert crossover(HALF, "difference", poly="mono") == (("tied",), ())
    assert crossover(HALF, "fisher", mono=(2, -2)) == (("tied",), ())


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match="criterion"):
        crossover(HALF, "fischer")
    with pytest.raises(InputError, match="noise"):
        crossover(HALF, "fisher", "labels")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="sparsity"):
        crossover(1, "fisher")
    for weights in ((0, 0), (float("nan"), 1)):
        with pytest.raises(InputError, match="weights of a representation"):
            crossover(HALF, "fisher", mono=weights)
