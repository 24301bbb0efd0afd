"""What the formulas take: exact numbers stay exact.

A ``Fraction`` (or whole number) gives Fractions, a float or an array of them floats, a sympy expression gives sympy
expressions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from math import comb
from typing import Any, NamedTuple

import numpy as np
import sympy
from sympy.polys.fields import FracElement

from monolora.errors import InputError, unknown

Number = Any  # Fraction, float, array or sympy expression: mypy has no type of numbers that these share
Weights = tuple[Number, Number]
Representation = str | Weights

SAME_LENGTH = "poly, same length"
REPRESENTATIONS: Mapping[str, Weights] = {
    "mono": (Fraction(1), Fraction(0)),
    "poly": (Fraction(1), Fraction(-1)),
    # the antipodal pair with weights of length 1, as mono's: every linear classifier does the same on it
    SAME_LENGTH: (1 / sympy.sqrt(2), -1 / sympy.sqrt(2)),
}


def weights_of(representation: Representation, beside: Number = 0) -> Weights:
    """``(a, b)`` of h = a x1 + b x2.

    Args:
        representation: a name in REPRESENTATIONS, or the weights.
        beside: what they are to be computed with: floats beside a float or an array, else as exact as they are given.

    Raises:
        InputError: for another name, and for weights that are no numbers or both 0.
    """
    if isinstance(representation, str):
        if representation not in REPRESENTATIONS:
            raise unknown("representation", representation, REPRESENTATIONS)
        representation = REPRESENTATIONS[representation]
    a, b = representation
    if (a == 0 and b == 0) or any(isinstance(each, float) and not math.isfinite(each) for each in (a, b)):
        raise InputError(f"The weights of a representation must be numbers, not both 0; got {a} and {b}.")
    return (float(a), float(b)) if isinstance(beside, float | np.ndarray) else (exact(a), exact(b))


def exact(value: Number) -> Number:
    """A whole number as a Fraction, so that what is divided stays exact; others as they are."""
    return Fraction(value) if isinstance(value, int) else value


def rational(value: Number) -> sympy.Expr:
    """As a sympy number. A float is taken as the decimal number that it is printed as: 0.9 is 9/10."""
    if isinstance(value, sympy.Basic):
        return value
    exactly = Fraction(str(value))
    return sympy.Rational(exactly.numerator, exactly.denominator)


def sparsity(S: Number) -> Number:
    """S, if it can be one.

    Raises:
        InputError: if it is not in [0, 1).
    """
    if not _is_symbol(S) and not np.all((S >= 0) & (S < 1)):
        raise InputError(f"The sparsity S must be 0 or more and below 1, where nothing is ever active; got {S}.")
    return exact(S)


def label_noise(eta: Number) -> Number:
    """The share of wrong labels, if it can be one.

    Raises:
        InputError: if it is not in [0, 1].
    """
    if not _is_symbol(eta) and not np.all((eta >= 0) & (eta <= 1)):
        raise InputError(f"The label noise must be within 0 and 1; got {eta}.")
    return exact(eta)


def input_noise(epsilon: Number) -> Number:
    """The standard deviation of the noise on each feature, if it can be one.

    Raises:
        InputError: if it is negative or not finite.
    """
    if not _is_symbol(epsilon) and not np.all((epsilon >= 0) & (epsilon < float("inf"))):
        raise InputError(f"The input noise must be 0 or more, and finite; got {epsilon}.")
    return exact(epsilon)


def _is_symbol(value: Number) -> bool:
    """Whether it stands for any number: an expression with symbols, or a rational function."""
    return isinstance(value, FracElement) or (isinstance(value, sympy.Basic) and bool(value.free_symbols))


class Moments(NamedTuple):
    """Of a representation h, given the label (as it is seen: with noise, the noisy one).

    Attributes:
        mu1, mu0: means of h where the label is 1, and where it is 0.
        v1, v0: variances.
    """

    mu1: Number
    mu0: Number
    v1: Number
    v0: Number

    @property
    def gap(self) -> Number:
        """Distance between the classes, mu1 - mu0."""
        return self.mu1 - self.mu0

    @property
    def spread(self) -> Number:
        """Summed variances within the classes, v1 + v0."""
        return self.v1 + self.v0


def feature_gap(S: Number) -> Number:
    """D = q (1 + 2S) / 3: how much larger x1 is, on average, where the label is 1 than where it is 0."""
    S = sparsity(S)
    return (1 - S) * (1 + 2 * S) / 3


def feature_variance(S: Number) -> Number:
    """T = q/3 - q²/4: the variance of a feature, whatever the label."""
    q = 1 - sparsity(S)
    return q / 3 - q**2 / 4


def conditional_moments(S: Number, representation: Representation) -> Moments:
    """Without noise (theorem 4.1; B.1 for mono, B.3 for poly).

    Args:
        S: probability that a feature is 0, in [0, 1).
        representation: ``"mono"``, ``"poly"``, or the weights ``(a, b)`` of h = a x1 + b x2.

    Raises:
        InputError: for what cannot be.
    """
    S = sparsity(S)
    a, b = weights_of(representation, S)
    q = 1 - S
    # where the label is 1: x1 is the larger feature, x2 the smaller
    larger, smaller = q * (2 + S) / 3, q**2 / 3
    v_larger, v_smaller = q * (3 + S) / 6 - larger**2, q**2 / 6 - smaller**2
    covariance = q**2 / 4 - larger * smaller
    both = 2 * a * b * covariance
    return Moments(
        a * larger + b * smaller,
        a * smaller + b * larger,
        a**2 * v_larger + b**2 * v_smaller + both,
        a**2 * v_smaller + b**2 * v_larger + both,
    )


def under_label_noise(clean: Moments, eta: Number) -> Moments:
    """Where each label is wrong with probability ``eta`` (theorems B.5, B.6): the classes mix.

    Args:
        clean: of the true labels, or of labels that are noisy already.
        eta: in [0, 1]; the gap shrinks by r = 1 - 2 eta.

    Raises:
        InputError: for another ``eta``.
    """
    eta = label_noise(eta)
    between = eta * (1 - eta) * clean.gap**2
    return Moments(
        (1 - eta) * clean.mu1 + eta * clean.mu0,
        (1 - eta) * clean.mu0 + eta * clean.mu1,
        (1 - eta) * clean.v1 + eta * clean.v0 + between,
        (1 - eta) * clean.v0 + eta * clean.v1 + between,
    )


def under_input_noise(moments: Moments, epsilon: Number, representation: Representation) -> Moments:
    """With Gaussian noise of standard deviation ``epsilon`` on each feature (theorems B.7, B.8).

    Args:
        moments: of the same representation.
        epsilon: 0 or more.
        representation: whose weights carry the noise: the variance grows by (a² + b²) epsilon².

    Raises:
        InputError: for what cannot be.
    """
    epsilon = input_noise(epsilon)
    a, b = weights_of(representation, moments.v1)
    more = (a**2 + b**2) * epsilon**2
    return moments._replace(v1=moments.v1 + more, v0=moments.v0 + more)


def noisy_moments(S: Number, representation: Representation, eta: Number = 0, epsilon: Number = 0) -> Moments:
    """Under both noises; they may come in either order."""
    clean = conditional_moments(S, representation)
    return under_input_noise(under_label_noise(clean, eta), epsilon, representation)


def summed_variances(S: Number, representation: Representation, eta: Number = 0) -> Number:
    """v1 + v0 under label noise by the law of total variance: 2 (a² + b²) T - r² (a - b)² D² / 2.

    That is 2T - r²D²/2 for mono and 4T - 2r²D² for poly: label noise moves the variance between the classes into them.
    """
    a, b = weights_of(representation, S)
    r = 1 - 2 * label_noise(eta)
    return 2 * (a**2 + b**2) * feature_variance(S) - r**2 * (a - b) ** 2 * feature_gap(S) ** 2 / 2


def of_label(S: Fraction, i: int, j: int, label: int) -> Fraction:
    """E[x1^i x2^j; label], the part of the mean where the label is as given."""
    if label == 0:
        i, j = j, i  # the mirror image: x1 and x2 are alike
    q = 1 - S
    both_zero = S**2 / 2 if i == j == 0 else Fraction(0)
    x1_only = q * S / (i + 1) if j == 0 else Fraction(0)
    both = q**2 / ((j + 1) * (i + j + 2))  # over 0 < x2 < x1 < 1
    return both_zero + x1_only + both


def raw_moment(S: Fraction, weights: tuple[Fraction, Fraction], power: int, label: int) -> Fraction:
    """E[h^power; label] of h = a x1 + b x2."""
    a, b = weights
    terms = (comb(power, i) * a**i * b ** (power - i) * of_label(S, i, power - i, label) for i in range(power + 1))
    return sum(terms, Fraction(0))


def joint_moments(S: Fraction, weights: tuple[Fraction, Fraction], eta: Fraction, epsilon: Fraction) -> Moments:
    """Conditional means and variances given the noisy label, of the noisy representation."""
    noise = (Fraction(0), (weights[0] ** 2 + weights[1] ** 2) * epsilon**2)  # its mean, and the mean of its square
    found = []
    for label in (1, 0):
        raw = [
            (1 - eta) * raw_moment(S, weights, power, label) + eta * raw_moment(S, weights, power, 1 - label)
            for power in range(3)
        ]
        share, mean = raw[0], raw[1] / raw[0] + noise[0]
        found.append((mean, raw[2] / share + noise[1] - mean**2))
    (mu1, v1), (mu0, v0) = found
    return Moments(mu1, mu0, v1, v0)
