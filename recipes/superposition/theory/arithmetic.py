"""What the formulas take: exact numbers stay exact.

A ``Fraction`` (or whole number) gives Fractions, a float or an array of them floats, a sympy expression gives sympy
expressions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

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
