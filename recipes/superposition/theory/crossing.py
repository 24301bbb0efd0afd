"""Which of two representations is ahead at which noise, exactly.

J_mono - J_poly is a rational function of S and of the noise, with a denominator that is positive. Its numerator is a
polynomial; between the numerator's roots the same representation is ahead. Under label noise the polynomial is one in
r = 1 - 2 eta, under input noise in epsilon.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Literal, NamedTuple

import sympy
from sympy.polys.fields import field

from monolora.errors import unknown
from monolora.recipes.superposition.theory import arithmetic
from monolora.recipes.superposition.theory.arithmetic import Number, Representation, rational, weights_of
from monolora.recipes.superposition.theory.criteria import criterion_of
from monolora.recipes.superposition.theory.moments import conditional_moments, under_input_noise, under_label_noise

Noise = Literal["label", "input"]

S_SYMBOL = sympy.Symbol("S", real=True)
X_SYMBOL = sympy.Symbol("x", nonnegative=True)  # r = 1 - 2 eta, or epsilon
TIED = "tied"
OVERTAKES = ("poly", "mono")  # the claim of theorems 4.2 and B.9


class Crossover(NamedTuple):
    """Who is ahead as the noise grows.

    Attributes:
        leaders: ``"mono"`` and ``"poly"`` in turns, the first from no noise on; ``("tied",)`` if J is the same.
        at: the noises at which they change, exact, ascending: eta below 1/2, or epsilon.
    """

    leaders: tuple[str, ...]
    at: tuple[sympy.Expr, ...]


def crossover(
    S: Number, criterion: str, noise: Noise = "label", mono: Representation = "mono", poly: Representation = "poly"
) -> Crossover:
    """Where mono and poly swap places.

    Args:
        S: in [0, 1). A float is taken as the decimal number that it is printed as.
        criterion: a name in CRITERIA.
        noise: ``"label"``: eta from 0 to 1/2; ``"input"``: epsilon from 0 on.
        mono, poly: the representations that are called so.

    Raises:
        InputError: for what cannot be.
    """
    p = numerator(criterion, noise, weights_of(mono), weights_of(poly))
    at_S = p.eval(S_SYMBOL, rational(arithmetic.sparsity(S)))
    if at_S.is_zero:
        return Crossover((TIED,), ())
    end = sympy.Integer(1) if noise == "label" else sympy.oo
    roots = sorted(root for root in _real_roots(at_S) if 0 < root < end)
    signs = [sympy.sign(at_S.eval(x)) for x in _between(roots, end)]
    if noise == "label":  # r falls as label noise grows
        roots, signs = roots[::-1], signs[::-1]
    leaders, at = [_leader(signs[0])], []
    for root, sign in zip(roots, signs[1:], strict=True):
        if _leader(sign) != leaders[-1]:  # at a double root nobody passes
            leaders.append(_leader(sign))
            at.append(sympy.radsimp((1 - root) / 2) if noise == "label" else root)
    return Crossover(tuple(leaders), tuple(at))


@functools.cache
def numerator(criterion: str, noise: Noise, mono: tuple[Number, Number], poly: tuple[Number, Number]) -> sympy.Poly:
    """Of J_mono - J_poly, a polynomial in S and x, positive where mono is ahead.

    Raises:
        InputError: for a criterion or a noise that there is not.
    """
    if noise not in ("label", "input"):
        raise unknown("noise", noise, ("label", "input"))
    value = criterion_of(criterion).value
    numbers_of, _ = sympy.construct_domain([rational(each) for each in (*mono, *poly)], extension=True, field=True)
    # elements of a field of rational functions: the formulas take them as they take any numbers
    _, S, x = field((S_SYMBOL, X_SYMBOL), numbers_of)
    found = []
    for weights in (mono, poly):
        moments = conditional_moments(S, tuple(numbers_of.from_sympy(rational(each)) for each in weights))
        if noise == "label":
            moments = under_label_noise(moments, (1 - x) / 2)
        else:
            moments = under_input_noise(moments, x, weights)
        found.append(value(moments.gap, moments.v1, moments.v0))
    difference = found[0] - found[1]
    # the denominator has one sign everywhere, as variances do: take it from the numerator
    third = numbers_of.from_sympy(sympy.Rational(1, 3))
    sign = sympy.sign(numbers_of.to_sympy(difference.denom.evaluate([(S.numer, third), (x.numer, third)])))
    return sympy.Poly(sign * difference.numer.as_expr(), S_SYMBOL, X_SYMBOL, domain=numbers_of)


def _real_roots(poly: sympy.Poly) -> set[sympy.Expr]:
    """In radicals: for the criteria here the polynomials are of degree 2 in x or x², but for factors of x."""
    found = sympy.roots(poly)
    if sum(found.values()) < poly.degree() or any(root.is_real is None for root in found):
        raise ArithmeticError(f"not all roots of {poly.as_expr()} are found in radicals")
    return {root for root in found if root.is_real}


def _between(roots: list[sympy.Expr], end: sympy.Expr) -> list[sympy.Rational]:
    """A rational in each gap that the ascending ``roots`` leave between 0 and ``end``."""
    last = 2 * roots[-1] + 1 if end == sympy.oo and roots else sympy.Integer(1)
    return [rational_between(low, high) for low, high in pairwise([sympy.Integer(0), *roots, last])]


def rational_between(low: sympy.Expr, high: sympy.Expr) -> sympy.Rational:
    """A rational number between two algebraic ones, ``low < high``, however near they are."""
    digits = 15
    while not low < (middle := sympy.Rational(str(sympy.N((low + high) / 2, digits)))) < high:
        digits *= 2
    return middle


def _leader(sign: sympy.Expr) -> str:
    return "mono" if sign > 0 else "poly"
