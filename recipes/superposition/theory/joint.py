"""The same moments from the joint distribution, piece by piece, in exact rationals: the check of the closed forms.

Nothing here comes from ``moments``. The plane has four pieces (both features 0, one of the two, both active); on each
the integral of x1^i x2^j over the side of the label is a rational number, and noise mixes or adds.
"""

from __future__ import annotations

from fractions import Fraction
from math import comb

from monolora.recipes.superposition.theory.moments import Moments


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
