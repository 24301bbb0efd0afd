"""Verdicts for every sparsity: they cover all, their edges are where they should be, and a scan agrees."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from scipy import optimize

from monolora.recipes.superposition.theory.crossings import CRITERIA, Noise, crossover, verdicts
from monolora.recipes.superposition.theory.moments import SAME_LENGTH, feature_gap, feature_variance


@pytest.mark.parametrize("noise", ["label", "input"])
@pytest.mark.parametrize("name", CRITERIA)
def test_they_are_those_of_single_sparsities(name: str, noise: Noise) -> None:
    intervals = verdicts(name, noise)
    assert (intervals[0].low, intervals[-1].high) == (0, 1)
    assert all(one.high == other.low and one.leaders != other.leaders for one, other in pairwise(intervals))
    for S in (Fraction(n, 37) for n in range(1, 37)):
        (here,) = [verdict for verdict in intervals if verdict.low < S < verdict.high]
        assert crossover(S, name, noise).leaders == here.leaders


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("squared-difference", 3.75),  # 4D² - (4T - 2D²)/2 = D² - (2T - D²/2)/2
        ("maximum-margin", 1.5),  # D² - (4T - 2D²)/2 = D²/4 - (2T - D²/2)/2
    ],
)
@pytest.mark.parametrize("noise", ["label", "input"])
def test_where_mono_leads_from_the_start(name: str, factor: float, noise: Noise) -> None:
    """The edge is where both are equal without noise: factor D² = T."""
    edge = optimize.brentq(lambda S: factor * feature_gap(S) ** 2 - feature_variance(S), 0.5, 0.999)
    below, above = verdicts(name, noise)
    assert float(below.high) == pytest.approx(edge, abs=1e-9)
    assert (below.leaders, above.leaders) == (("poly", "mono"), ("mono",))


def test_of_the_same_length_nobody_overtakes_poly() -> None:
    for name in ("ratio", "difference", "squared-difference", "maximum-margin"):
        for noise in ("label", "input"):
            (only,) = verdicts(name, noise, poly=SAME_LENGTH)
            assert only.leaders == ("poly",)


def test_an_edge_with_a_square_root_in_its_polynomial() -> None:
    below, above = verdicts("product", "label", poly=SAME_LENGTH)
    assert (below.leaders, above.leaders) == (("poly",), ("mono", "poly"))
    nearly = Fraction(1, 10**6)
    edge = Fraction(float(below.high))
    assert crossover(edge - nearly, "product", poly=SAME_LENGTH).leaders == below.leaders
    assert crossover(edge + nearly, "product", poly=SAME_LENGTH).leaders == above.leaders
