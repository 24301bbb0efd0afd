"""Criteria J of separability, and where mono and poly swap places under each: at one sparsity, and at all.

The paper asks for a large distance between the classes and a small variance within them, after Fisher (1936); the
formula for J is missing from its text. CRITERIA are the usual ways to put this in one number. They do not agree, so J
is always named.

Everything is exact. J_mono - J_poly is a rational function of S and the noise whose denominator has one sign. Its
numerator is a polynomial p(S, x), with x = r = 1 - 2 eta under label noise and x = epsilon under input noise; between
the roots of p in x, the same representation leads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from itertools import combinations, pairwise
from typing import Literal, NamedTuple

import sympy
from scipy import integrate, optimize
from scipy.special import ndtr
from sympy.polys.fields import field

from monolora.errors import unknown
from monolora.recipes.superposition.theory import moments
from monolora.recipes.superposition.theory.moments import (
    Number,
    Representation,
    conditional_moments,
    input_noise,
    noisy_moments,
    rational,
    sparsity,
    under_input_noise,
    under_label_noise,
    weights_of,
)

# How often the best linear classifier on a representation is right: the accuracy that J only stands in for.
#
# Label noise below 1/2 does not appear here. It scales P(1 | h) - P(0 | h) by 1 - 2 eta and keeps its sign, so the
# best threshold and its accuracy on true labels stay the same; label noise costs accuracy only through finite samples.


Curve = Callable[[float], float]


def best_accuracy(S: float, representation: Literal["mono", "poly"], epsilon: float = 0.0) -> float:
    """The accuracy of the best threshold on h, with Gaussian noise on the features.

    For poly, ``h > 0`` is the Bayes rule on both noisy features: no classifier that sees them is more accurate.

    Args:
        S: in [0, 1).
        representation: ``"mono"``, whose best threshold depends on the noise, or ``"poly"``, whose best one is 0.
        epsilon: standard deviation of the noise on each feature.

    Raises:
        InputError: for arguments out of range.
    """
    S, epsilon = float(sparsity(S)), float(input_noise(epsilon))
    if representation == "poly":
        return _poly(S, epsilon)
    if representation != "mono":
        raise unknown("representation", representation, ("mono", "poly"))
    if epsilon == 0:
        return _mono(S, max(0.0, (0.5 - S) / (1 - S)), 0.0)  # where x1 is the larger with probability 1/2
    # A coarse grid first: the accuracy may have one maximum near h = 0, where the zeros are, and another above.
    reach, steps = 1 + 8 * epsilon, 64
    thresholds = [-reach + 2 * reach * step / steps for step in range(steps + 1)]
    best = max(thresholds, key=lambda t: _mono(S, t, epsilon))
    bounds = (best - 2 * reach / steps, best + 2 * reach / steps)
    optimum = optimize.minimize_scalar(lambda t: -_mono(S, t, epsilon), bounds=bounds, method="bounded")
    return -float(optimum.fun)


def _poly(S: float, epsilon: float) -> float:
    """S²/2 from coins; else the density of u = |x1 - x2|, of one or two active features, times P(right sign | u)."""
    q = 1 - S
    positive = _positive(epsilon * math.sqrt(2))
    return S**2 / 2 + _integral(lambda u: (2 * S * q + 2 * q**2 * (1 - u)) * positive(u), epsilon)


def _mono(S: float, t: float, epsilon: float) -> float:
    """``x1 + noise > t`` says 1. The label is 1 with probability S/2 where x1 is 0, and S + q x1 where it is active."""
    q = 1 - S
    above = _positive(epsilon)
    at_zero = S * (S / 2 * above(-t) + (1 - S / 2) * (1 - above(-t)))
    return at_zero + _integral(
        lambda u: q * ((S + q * u) * above(u - t) + (q - q * u) * (1 - above(u - t))), epsilon, t
    )


def _positive(epsilon: float) -> Curve:
    """P(u + noise > 0) as a function of u."""
    return (lambda u: float(ndtr(u / epsilon))) if epsilon else (lambda u: float(u > 0))


def _integral(curve: Curve, epsilon: float, kink: float = 0.0) -> float:
    """The integral over [0, 1], in pieces: near ``kink`` the curve turns within a few epsilon."""
    edges = sorted({edge for edge in (kink - 4 * epsilon, kink, kink + 4 * epsilon) if 0 < edge < 1})
    return sum(integrate.quad(curve, low, high)[0] for low, high in pairwise([0.0, *edges, 1.0]))


Noise = Literal["label", "input"]

S_SYMBOL = sympy.Symbol("S", real=True)
X_SYMBOL = sympy.Symbol("x", nonnegative=True)  # r = 1 - 2 eta, or epsilon
TIED = "tied"
OVERTAKES = ("poly", "mono")  # the claim of theorems 4.2 and B.9


class Criterion(NamedTuple):
    """One number for how separable two classes are; larger is better.

    Attributes:
        formula: for people.
        value: J of the gap and the two variances.
        scale_free: whether c h has the same J as h. A linear classifier does not depend on c; a J that does ranks
            representations by their units.
    """

    formula: str
    value: Callable[[Number, Number, Number], Number]
    scale_free: bool


CRITERIA: Mapping[str, Criterion] = {
    "fisher": Criterion("gap² / (v1 + v0)", lambda gap, v1, v0: gap**2 / (v1 + v0), True),
    "fisher-geometric": Criterion("gap⁴ / (v1 v0)", lambda gap, v1, v0: gap**4 / (v1 * v0), True),
    "ratio": Criterion("gap / (v1 + v0)", lambda gap, v1, v0: gap / (v1 + v0), False),
    "difference": Criterion("gap - (v1 + v0)", lambda gap, v1, v0: gap - (v1 + v0), False),
    "squared-difference": Criterion("gap² - (v1 + v0) / 2", lambda gap, v1, v0: gap**2 - (v1 + v0) / 2, False),
    "maximum-margin": Criterion("gap² / 4 - (v1 + v0) / 2", lambda gap, v1, v0: gap**2 / 4 - (v1 + v0) / 2, False),
    "product": Criterion("gap / (v1 v0)", lambda gap, v1, v0: gap / (v1 * v0), False),
    "squared-product": Criterion("gap² / (v1 v0)", lambda gap, v1, v0: gap**2 / (v1 * v0), False),
}


def criterion_of(name: str) -> Criterion:
    """The criterion of a name in CRITERIA.

    Raises:
        InputError: for an unknown name.
    """
    if name not in CRITERIA:
        raise unknown("criterion", name, CRITERIA)
    return CRITERIA[name]


def separability(
    S: Number, representation: Representation, criterion: str, eta: Number = 0, epsilon: Number = 0
) -> Number:
    """J of a representation (theorems 4.2, B.9).

    Args:
        S: probability that a feature is 0, in [0, 1).
        representation: ``"mono"``, ``"poly"``, or weights.
        criterion: a name in CRITERIA.
        eta: share of wrong labels, in [0, 1]; above 1/2 the classes are swapped, and the gap is negative.
        epsilon: standard deviation of Gaussian noise on each feature.

    Raises:
        InputError: for arguments out of range.
    """
    moments = noisy_moments(S, representation, eta, epsilon)
    return criterion_of(criterion).value(moments.gap, moments.v1, moments.v0)


# At one sparsity.


class Crossover(NamedTuple):
    """Who leads as the noise grows.

    Attributes:
        leaders: ``"mono"`` and ``"poly"`` in turns, the first without noise; ``("tied",)`` if J is the same.
        at: the noise levels at which they change, exact, ascending: eta below 1/2, or epsilon.
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
        mono, poly: the two representations.

    Raises:
        InputError: for arguments out of range.
    """
    p = numerator(criterion, noise, weights_of(mono), weights_of(poly))
    at_S = p.eval(S_SYMBOL, rational(moments.sparsity(S)))
    if at_S.is_zero:
        return Crossover((TIED,), ())
    end = sympy.Integer(1) if noise == "label" else sympy.oo
    roots = sorted(root for root in _real_roots(at_S) if 0 < root < end)
    signs = [sympy.sign(at_S.eval(x)) for x in _between(roots, end)]
    if noise == "label":  # r falls as label noise grows
        roots, signs = roots[::-1], signs[::-1]
    leaders, at = [_leader(signs[0])], []
    for root, sign in zip(roots, signs[1:], strict=True):
        if _leader(sign) != leaders[-1]:  # at a double root nobody overtakes
            leaders.append(_leader(sign))
            at.append(sympy.radsimp((1 - root) / 2) if noise == "label" else root)
    return Crossover(tuple(leaders), tuple(at))


@functools.cache
def numerator(criterion: str, noise: Noise, mono: tuple[Number, Number], poly: tuple[Number, Number]) -> sympy.Poly:
    """The numerator of J_mono - J_poly, a polynomial in S and x that is positive where mono leads.

    Raises:
        InputError: for an unknown criterion or noise.
    """
    if noise not in ("label", "input"):
        raise unknown("noise", noise, ("label", "input"))
    value = criterion_of(criterion).value
    domain, _ = sympy.construct_domain([rational(weight) for weight in (*mono, *poly)], extension=True, field=True)
    # Elements of a field of rational functions: the closed forms take them like any numbers.
    _, S, x = field((S_SYMBOL, X_SYMBOL), domain)
    values = []
    for weights in (mono, poly):
        moments = conditional_moments(S, tuple(domain.from_sympy(rational(weight)) for weight in weights))
        if noise == "label":
            moments = under_label_noise(moments, (1 - x) / 2)
        else:
            moments = under_input_noise(moments, x, weights)
        values.append(value(moments.gap, moments.v1, moments.v0))
    difference = values[0] - values[1]
    # The denominator has one sign everywhere, as variances do. Its value anywhere, here at (1/3, 1/3), gives that sign.
    third = domain.from_sympy(sympy.Rational(1, 3))
    sign = sympy.sign(domain.to_sympy(difference.denom.evaluate([(S.numer, third), (x.numer, third)])))
    return sympy.Poly(sign * difference.numer.as_expr(), S_SYMBOL, X_SYMBOL, domain=domain)


def _real_roots(poly: sympy.Poly) -> set[sympy.Expr]:
    """Real roots in radicals: under CRITERIA the polynomials are of degree 2 in x or x², up to factors of x."""
    multiplicities = sympy.roots(poly)
    if sum(multiplicities.values()) < poly.degree() or any(root.is_real is None for root in multiplicities):
        raise ArithmeticError(f"not all roots of {poly.as_expr()} are found in radicals")
    return {root for root in multiplicities if root.is_real}


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


# At every sparsity at once. The pattern of who leads can change with S only where a root of p in x meets another root
# or an end of the noise: at roots of p's discriminant, of its leading coefficient and of its values at the ends, all
# polynomials in S alone (a cylindrical algebraic decomposition). Between these, one S stands for all.


class Verdict(NamedTuple):
    """Who leads as the noise grows, for an open interval of sparsities.

    Attributes:
        low: lower end of the interval of S; an algebraic number.
        high: its upper end; likewise.
        leaders: as in Crossover.
    """

    low: sympy.Expr
    high: sympy.Expr
    leaders: tuple[str, ...]


def verdicts(
    criterion: str, noise: Noise = "label", mono: Representation = "mono", poly: Representation = "poly"
) -> tuple[Verdict, ...]:
    """Verdicts that together cover 0 < S < 1, ascending; neighbours differ. Arguments as for ``crossover``."""
    p = numerator(criterion, noise, weights_of(mono), weights_of(poly))
    edges = [sympy.Integer(0), *_critical(p, noise), sympy.Integer(1)]
    intervals: list[Verdict] = []
    for low, high in pairwise(edges):
        leaders = crossover(rational_between(low, high), criterion, noise, mono, poly).leaders
        if intervals and intervals[-1].leaders == leaders:
            intervals[-1] = intervals[-1]._replace(high=high)
        else:
            intervals.append(Verdict(low, high, leaders))
    return tuple(intervals)


def _critical(p: sympy.Poly, noise: Noise) -> list[sympy.Expr]:
    """The sparsities between 0 and 1 where the pattern can change, ascending; at some of them it may not."""
    factors = [factor.reorder(X_SYMBOL, S_SYMBOL) for factor, _ in p.factor_list()[1]]
    in_x = [factor for factor in factors if factor.degree(X_SYMBOL) > 0]
    conditions = [factor.eval(X_SYMBOL, 0) for factor in factors if factor not in in_x]
    for factor in in_x:
        leading = factor.eject(S_SYMBOL).LC()
        conditions += [sympy.Poly(leading, S_SYMBOL, extension=True), factor.eval(X_SYMBOL, 0), factor.discriminant()]
        conditions += [factor.eval(X_SYMBOL, 1)] if noise == "label" else []
    conditions += [one.resultant(other) for one, other in combinations(in_x, 2)]
    roots = {root for condition in conditions for root in _roots_in_range(condition) if 0 < root < 1}
    return sorted(roots)


def _roots_in_range(condition: sympy.Poly) -> set[sympy.Expr]:
    """Real roots of a polynomial in S; if its coefficients have square roots, of its product with its conjugate."""
    if condition.degree() < 1:
        return set()
    rational = condition if condition.domain.is_QQ or condition.domain.is_ZZ else condition.norm()
    return {root for root, _ in rational.real_roots(multiple=False)}
