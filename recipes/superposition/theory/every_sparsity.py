"""The verdict of a criterion for every sparsity at once.

The numerator of J_mono - J_poly is a polynomial p(S, x). The pattern of who leads can change with S only where a root
in x meets another one or an end of the noise: at roots of p's discriminant, of its leading coefficient and of its
values at the ends, all polynomials in S alone (a cylindrical decomposition). Between these, the pattern at one S is the
pattern at all.
"""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import NamedTuple

import sympy

from monolora.recipes.superposition.theory.arithmetic import Representation, weights_of
from monolora.recipes.superposition.theory.crossing import (
    S_SYMBOL,
    X_SYMBOL,
    Noise,
    crossover,
    numerator,
    rational_between,
)


class Verdict(NamedTuple):
    """Who leads as the noise grows, for an open interval of sparsities.

    Attributes:
        low, high: of S; algebraic numbers.
        leaders: as in Crossover.
    """

    low: sympy.Expr
    high: sympy.Expr
    leaders: tuple[str, ...]


def verdicts(
    criterion: str, noise: Noise = "label", mono: Representation = "mono", poly: Representation = "poly"
) -> tuple[Verdict, ...]:
    """Verdicts that together cover 0 < S < 1, ascending; neighbours differ. Arguments as of ``crossover``."""
    p = numerator(criterion, noise, weights_of(mono), weights_of(poly))
    edges = [sympy.Integer(0), *_critical(p, noise), sympy.Integer(1)]
    found: list[Verdict] = []
    for low, high in pairwise(edges):
        leaders = crossover(rational_between(low, high), criterion, noise, mono, poly).leaders
        if found and found[-1].leaders == leaders:
            found[-1] = found[-1]._replace(high=high)
        else:
            found.append(Verdict(low, high, leaders))
    return tuple(found)


def _critical(p: sympy.Poly, noise: Noise) -> list[sympy.Expr]:
    """The sparsities between 0 and 1 where the pattern may change, ascending; there may be some where it does not."""
    factors = [factor.reorder(X_SYMBOL, S_SYMBOL) for factor, _ in p.factor_list()[1]]
    in_x = [factor for factor in factors if factor.degree(X_SYMBOL) > 0]
    conditions = [factor.eval(X_SYMBOL, 0) for factor in factors if factor not in in_x]
    for factor in in_x:
        highest = factor.eject(S_SYMBOL).LC()
        conditions += [sympy.Poly(highest, S_SYMBOL, extension=True), factor.eval(X_SYMBOL, 0), factor.discriminant()]
        conditions += [factor.eval(X_SYMBOL, 1)] if noise == "label" else []
    conditions += [one.resultant(other) for one, other in combinations(in_x, 2)]
    roots = {root for condition in conditions for root in _real_roots(condition) if 0 < root < 1}
    return sorted(roots)


def _real_roots(condition: sympy.Poly) -> set[sympy.Expr]:
    """Of a polynomial in S; if its coefficients have square roots in them, of its product with its conjugate."""
    if condition.degree() < 1:
        return set()
    rational = condition if condition.domain.is_QQ or condition.domain.is_ZZ else condition.norm()
    return {root for root, _ in rational.real_roots(multiple=False)}
