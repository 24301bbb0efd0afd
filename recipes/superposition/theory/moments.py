"""Means and variances of a representation given the label, in three ways: closed forms, integrals, random samples.

The closed forms are the theorems'. The integrals and the samples use nothing of them: ``verify`` checks one against the
others. Exact numbers stay exact: a ``Fraction`` (or whole number) gives Fractions, a float or an array of them floats,
a sympy expression sympy expressions.

Two features x1, x2: each is 0 with probability S, else uniform on [0, 1]. The label is 1 where x1 > x2, 0 where
x1 < x2, and a fair coin where both are 0. A representation is one number h = a x1 + b x2: the paper's monosemantic one
is x1, its polysemantic one, an antipodal pair, x1 - x2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    # The antipodal pair with weights of length 1, like mono's: to a linear classifier it is the same representation.
    SAME_LENGTH: (1 / sympy.sqrt(2), -1 / sympy.sqrt(2)),
}
_CHUNK = 1 << 18  # random samples at a time, so that they stay in the processor's cache


# Arguments.


def weights_of(representation: Representation, like: Number = 0) -> Weights:
    """``(a, b)`` of h = a x1 + b x2.

    Args:
        representation: a name in REPRESENTATIONS, or the weights.
        like: a number that they are used with: a float or an array makes them floats, else they stay exact.

    Raises:
        InputError: for an unknown name, and for weights that are not finite or both 0.
    """
    if isinstance(representation, str):
        if representation not in REPRESENTATIONS:
            raise unknown("representation", representation, REPRESENTATIONS)
        representation = REPRESENTATIONS[representation]
    a, b = representation
    if (a == 0 and b == 0) or any(isinstance(weight, float) and not math.isfinite(weight) for weight in (a, b)):
        raise InputError(f"The weights of a representation must be numbers, not both 0; got {a} and {b}.")
    return (float(a), float(b)) if isinstance(like, float | np.ndarray) else (exact(a), exact(b))


def exact(value: Number) -> Number:
    """A whole number as a Fraction, so that quotients stay exact; other numbers unchanged."""
    return Fraction(value) if isinstance(value, int) else value


def rational(value: Number) -> sympy.Expr:
    """A sympy number. A float is taken as the decimal number that it is printed as: 0.9 is 9/10."""
    if isinstance(value, sympy.Basic):
        return value
    fraction = Fraction(str(value))
    return sympy.Rational(fraction.numerator, fraction.denominator)


def sparsity(S: Number) -> Number:
    """Check S, and make it exact.

    Raises:
        InputError: if it is not in [0, 1).
    """
    if not _is_symbol(S) and not np.all((S >= 0) & (S < 1)):
        raise InputError(f"The sparsity S must be 0 or more and below 1, where nothing is ever active; got {S}.")
    return exact(S)


def label_noise(eta: Number) -> Number:
    """Check the share of wrong labels, and make it exact.

    Raises:
        InputError: if it is not in [0, 1].
    """
    if not _is_symbol(eta) and not np.all((eta >= 0) & (eta <= 1)):
        raise InputError(f"The label noise must be within 0 and 1; got {eta}.")
    return exact(eta)


def input_noise(epsilon: Number) -> Number:
    """Check the standard deviation of the noise on each feature, and make it exact.

    Raises:
        InputError: if it is negative or not finite.
    """
    if not _is_symbol(epsilon) and not np.all((epsilon >= 0) & (epsilon < float("inf"))):
        raise InputError(f"The input noise must be 0 or more, and finite; got {epsilon}.")
    return exact(epsilon)


def _is_symbol(value: Number) -> bool:
    """Whether it stands for any number, as an expression with symbols or a rational function does: nothing to check."""
    return isinstance(value, FracElement) or (isinstance(value, sympy.Basic) and bool(value.free_symbols))


# Closed forms.


class Moments(NamedTuple):
    """Conditional moments of a representation h, given the label: under label noise, the noisy one.

    Attributes:
        mu1: mean of h where the label is 1.
        mu0: mean of h where the label is 0.
        v1: variance of h where the label is 1.
        v0: variance of h where the label is 0.
    """

    mu1: Number
    mu0: Number
    v1: Number
    v0: Number

    @property
    def gap(self) -> Number:
        """The distance between the class means, mu1 - mu0."""
        return self.mu1 - self.mu0

    @property
    def spread(self) -> Number:
        """The summed variances within the classes, v1 + v0."""
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
    """Moments without noise (theorem 4.1; B.1 for mono, B.3 for poly).

    Args:
        S: probability that a feature is 0, in [0, 1).
        representation: ``"mono"``, ``"poly"``, or the weights ``(a, b)`` of h = a x1 + b x2.

    Raises:
        InputError: for arguments out of range.
    """
    S = sparsity(S)
    a, b = weights_of(representation, S)
    q = 1 - S
    # Where the label is 1, x1 is the larger feature and x2 the smaller; where it is 0, the other way round.
    larger, smaller = q * (2 + S) / 3, q**2 / 3
    v_larger, v_smaller = q * (3 + S) / 6 - larger**2, q**2 / 6 - smaller**2
    covariance = q**2 / 4 - larger * smaller
    cross = 2 * a * b * covariance
    return Moments(
        a * larger + b * smaller,
        a * smaller + b * larger,
        a**2 * v_larger + b**2 * v_smaller + cross,
        a**2 * v_smaller + b**2 * v_larger + cross,
    )


def under_label_noise(clean: Moments, eta: Number) -> Moments:
    """Moments where each label is wrong with probability ``eta`` (theorems B.5, B.6): the classes mix.

    Args:
        clean: given the true labels, or given labels that are noisy already.
        eta: in [0, 1]; the gap is multiplied by r = 1 - 2 eta.

    Raises:
        InputError: for ``eta`` out of range.
    """
    eta = label_noise(eta)
    if isinstance(clean.gap, np.ndarray) and isinstance(eta, Fraction):
        eta = float(
            eta
        )  # times a Fraction, arrays of numbers become arrays of Python objects, which take 20 times as long
    # Law of total variance: a mixture's variance is the mean of the variances and the variance of the means.
    between = eta * (1 - eta) * clean.gap**2
    return Moments(
        (1 - eta) * clean.mu1 + eta * clean.mu0,
        (1 - eta) * clean.mu0 + eta * clean.mu1,
        (1 - eta) * clean.v1 + eta * clean.v0 + between,
        (1 - eta) * clean.v0 + eta * clean.v1 + between,
    )


def under_input_noise(moments: Moments, epsilon: Number, representation: Representation) -> Moments:
    """Moments with Gaussian noise of standard deviation ``epsilon`` on each feature (theorems B.7, B.8).

    Args:
        moments: of the same representation.
        epsilon: 0 or more.
        representation: its weights scale the noise: the variance grows by (a² + b²) epsilon².

    Raises:
        InputError: for arguments out of range.
    """
    epsilon = input_noise(epsilon)
    a, b = weights_of(representation, moments.v1)
    noise = (a**2 + b**2) * epsilon**2
    return moments._replace(v1=moments.v1 + noise, v0=moments.v0 + noise)


def noisy_moments(S: Number, representation: Representation, eta: Number = 0, epsilon: Number = 0) -> Moments:
    """Moments under both noises; their order does not matter."""
    clean = conditional_moments(S, representation)
    return under_input_noise(under_label_noise(clean, eta), epsilon, representation)


def summed_variances(S: Number, representation: Representation, eta: Number = 0) -> Number:
    """v1 + v0 under label noise by the law of total variance: 2 (a² + b²) T - r² (a - b)² D² / 2.

    This is 2T - r²D²/2 for mono and 4T - 2r²D² for poly: label noise turns variance between the classes into variance
    within them.
    """
    a, b = weights_of(representation, S)
    r = 1 - 2 * label_noise(eta)
    return 2 * (a**2 + b**2) * feature_variance(S) - r**2 * (a - b) ** 2 * feature_gap(S) ** 2 / 2


# Integrals of the joint distribution, in exact rationals. The plane has four pieces (both features 0, one of the two,
# both active). On each, the integral of x1^i x2^j over the side of the label is a rational number; noise mixes or adds.


def partial_moment(S: Fraction, i: int, j: int, label: int) -> Fraction:
    """E[x1^i x2^j; label]: the part of the mean that comes from samples of the label."""
    if label == 0:
        i, j = j, i  # by symmetry of x1 and x2
    q = 1 - S
    both_zero = S**2 / 2 if i == j == 0 else Fraction(0)
    x1_only = q * S / (i + 1) if j == 0 else Fraction(0)
    both = q**2 / ((j + 1) * (i + j + 2))  # over 0 < x2 < x1 < 1
    return both_zero + x1_only + both


def raw_moment(S: Fraction, weights: tuple[Fraction, Fraction], power: int, label: int) -> Fraction:
    """E[h^power; label] of h = a x1 + b x2."""
    a, b = weights
    terms = (
        comb(power, i) * a**i * b ** (power - i) * partial_moment(S, i, power - i, label) for i in range(power + 1)
    )
    return sum(terms, Fraction(0))


def joint_moments(S: Fraction, weights: tuple[Fraction, Fraction], eta: Fraction, epsilon: Fraction) -> Moments:
    """Conditional moments of the noisy representation, given the noisy label."""
    noise_variance = (weights[0] ** 2 + weights[1] ** 2) * epsilon**2
    by_label = []
    for label in (1, 0):
        probability, first, second = (
            (1 - eta) * raw_moment(S, weights, power, label) + eta * raw_moment(S, weights, power, 1 - label)
            for power in range(3)
        )
        mean = first / probability
        by_label.append((mean, second / probability + noise_variance - mean**2))
    (mu1, v1), (mu0, v0) = by_label
    return Moments(mu1, mu0, v1, v0)


# Random samples.


class Noises(NamedTuple):
    """The noises of an estimate.

    Attributes:
        eta: share of wrong labels.
        epsilon: standard deviation of the noise on each feature.
    """

    eta: float
    epsilon: float


class Estimates(NamedTuple):
    """Estimated conditional moments, each with its standard error: ``(estimate, error)``."""

    mu1: tuple[float, float]
    mu0: tuple[float, float]
    v1: tuple[float, float]
    v0: tuple[float, float]

    @property
    def spread(self) -> tuple[float, float]:
        """v1 + v0. The two come from different samples, so their errors are independent."""
        return self.v1[0] + self.v0[0], float(np.hypot(self.v1[1], self.v0[1]))


def estimate_moments(
    S: float, weights: Sequence[tuple[float, float]], noises: Sequence[Noises], samples: int, seed: Sequence[int]
) -> Iterator[tuple[tuple[float, float], Noises, Estimates]]:
    """Estimate moments from random features, labels and noise.

    Args:
        S: probability that a feature is 0.
        weights: ``(a, b)`` of each representation h = a x1 + b x2.
        noises: one estimate for each; all use the same samples, so their errors are not independent of each other.
        samples: how many.
        seed: the same seed gives the same estimates.

    Yields:
        Weights, noises and estimates of each combination.
    """
    sums = {(ab, noise): np.zeros((2, 5)) for ab in weights for noise in noises}
    generator = np.random.default_rng(seed)
    for start in range(0, samples, _CHUNK):
        _add_samples(sums, S, generator, min(_CHUNK, samples - start))
    for (ab, noise), class_sums in sums.items():
        (mu0, v0), (mu1, v1) = (_mean_and_variance(power_sums) for power_sums in class_sums)
        yield ab, noise, Estimates(mu1, mu0, v1, v0)


def _add_samples(
    sums: dict[tuple[tuple[float, float], Noises], np.ndarray], S: float, generator: np.random.Generator, count: int
) -> None:
    """Add the powers 0 to 4 of ``count`` new samples' h to the sums of their classes."""
    x1, x2 = generator.random((2, count)) * (generator.random((2, count)) >= S)
    coin = generator.random(count) < 0.5
    y = np.where(x1 == x2, coin, x1 > x2)
    flip = generator.random(count)
    z1, z2 = generator.standard_normal((2, count))
    for ((a, b), noise), class_sums in sums.items():
        noisy_y = y ^ (flip < noise.eta)
        h = a * x1 + b * x2
        if noise.epsilon:
            h += noise.epsilon * (a * z1 + b * z2)
        for label, class_h in enumerate((h[~noisy_y], h[noisy_y])):
            square = class_h * class_h
            class_sums[label] += [
                class_h.size, class_h.sum(), square.sum(), square @ class_h, square @ square
            ]  # fmt: skip


def _mean_and_variance(power_sums: Iterable[float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Mean and variance with their standard errors, from the sums of the powers 0 to 4."""
    n, s1, s2, s3, s4 = power_sums
    mean = s1 / n
    variance = s2 / n - mean**2
    fourth = s4 / n - 4 * mean * s3 / n + 6 * mean**2 * s2 / n - 3 * mean**4  # central moment
    unbiased = variance * n / (n - 1)
    return (mean, (variance / n) ** 0.5), (unbiased, ((fourth - variance**2) / n) ** 0.5)
