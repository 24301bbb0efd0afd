"""Conditional means and variances in closed form: theorems 4.1, B.1, B.3, B.5 to B.8.

With q = 1 - S. The paper's text has lost its formulas; these are derived, and checked in two other ways by
``monolora superposition verify``.
"""

from __future__ import annotations

from typing import NamedTuple

from monolora.recipes.superposition.theory import arithmetic
from monolora.recipes.superposition.theory.arithmetic import Number, Representation, weights_of


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
    S = arithmetic.sparsity(S)
    return (1 - S) * (1 + 2 * S) / 3


def feature_variance(S: Number) -> Number:
    """T = q/3 - q²/4: the variance of a feature, whatever the label."""
    q = 1 - arithmetic.sparsity(S)
    return q / 3 - q**2 / 4


def conditional_moments(S: Number, representation: Representation) -> Moments:
    """Without noise (theorem 4.1; B.1 for mono, B.3 for poly).

    Args:
        S: probability that a feature is 0, in [0, 1).
        representation: ``"mono"``, ``"poly"``, or the weights ``(a, b)`` of h = a x1 + b x2.

    Raises:
        InputError: for what cannot be.
    """
    S = arithmetic.sparsity(S)
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
    eta = arithmetic.label_noise(eta)
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
    epsilon = arithmetic.input_noise(epsilon)
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
    r = 1 - 2 * arithmetic.label_noise(eta)
    return 2 * (a**2 + b**2) * feature_variance(S) - r**2 * (a - b) ** 2 * feature_gap(S) ** 2 / 2
