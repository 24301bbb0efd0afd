"""Verdicts in words."""

from __future__ import annotations

import pytest
import sympy

from monolora.recipes.superposition import verify
from monolora.recipes.superposition.theory.crossings import Crossover, Verdict, verdicts

QUARTER, HALF = sympy.Rational(1, 4), sympy.Rational(1, 2)


@pytest.mark.parametrize(
    ("crossover", "cell"),
    [
        (Crossover(("poly",), ()), "never"),
        (Crossover(("mono",), ()), "always"),
        (Crossover(("tied",), ()), "tied"),
        (Crossover(("poly", "mono"), (QUARTER,)), "0.25"),
        (Crossover(("mono", "poly"), (QUARTER,)), "until 0.25"),
        (Crossover(("poly", "mono", "poly"), (QUARTER, HALF)), "0.25 to 0.5"),
        (Crossover(("mono", "poly", "mono"), (QUARTER, HALF)), "until 0.25, from 0.5"),
    ],
)
def test_at_one_sparsity(crossover: Crossover, cell: str) -> None:
    assert verify.crossover_cell(crossover) == cell


def test_for_every_sparsity() -> None:
    assert verify.verdict_cell(verdicts("fisher")) == "every S: poly leads"
    three = [
        Verdict(sympy.Integer(0), QUARTER, ("poly",)),
        Verdict(QUARTER, HALF, ("mono", "poly", "mono")),
        Verdict(HALF, sympy.Integer(1), ("poly", "mono")),
    ]
    assert verify.verdict_cell(three) == (
        "S < 0.2500: poly leads; 0.2500 < S < 0.5000: mono, then poly, then mono; S > 0.5000: MONO OVERTAKES"
    )


def test_claims_follow_from_the_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "POLYS", {"poly": "as in the paper"})
    text = " ".join(line.strip() for line in verify.verdict_lines())
    assert (
        "theorem 4.2 (mono overtakes poly under label noise) holds for every S under difference; for some S under "
        "squared-difference (S < 0.9060), maximum-margin (S < 0.7378), product (S < 0.4616); for no S under fisher, "
        "fisher-geometric, ratio, squared-product." in text
    )
    assert "theorem 4.1 (poly leads without noise) holds for every S under fisher, ratio, difference; for some" in text
