"""Sparse probing: how well few units tell a concept, against all of them (Gurnee et al. 2023, arXiv 2305.01610).

A probe is a logistic regression on the mean activations of texts, fitted on one half of the texts and scored on the
other. Units have no common scale, so each is measured in its own standard deviations on the training half. The two
classes weigh the same, so that chance is 50 %.

Shapes: N texts, U units, K units of a probe.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monolora.stats import SEED, Floats

Flags = NDArray[np.bool_]

_STEPS = 50  # of Newton's method


def training_half(groups: ArrayLike, seed: int = SEED) -> Flags:
    """Half of the texts of each group, drawn at random, ``(N,)``; of an odd number the training half has one more.

    Args:
        groups: of each text, ``(N,)``.
        seed: of the draw.
    """
    group_N = np.asarray(groups)
    random = np.random.default_rng(seed)
    is_training_N = np.zeros(len(group_N), dtype=np.bool_)
    for group in np.unique(group_N):
        members = random.permutation(np.flatnonzero(group_N == group))
        is_training_N[members[: (len(members) + 1) // 2]] = True
    return is_training_N


def class_weights(is_positive_N: Flags) -> Floats:
    """Weights with a sum of 1 that make both classes count the same, ``(N,)``."""
    return np.where(is_positive_N, 0.5 / is_positive_N.sum(), 0.5 / (~is_positive_N).sum())


def standardised(x_NU: Floats, is_training_N: Flags) -> Floats:
    """Activations in standard deviations of the training texts from their mean; 0 for a unit that is constant there."""
    mean_U, std_U = x_NU[is_training_N].mean(0), x_NU[is_training_N].std(0)
    is_constant_U = std_U <= 1e-6 * np.abs(mean_U)
    return np.where(is_constant_U, 0.0, (x_NU - mean_U) / np.where(is_constant_U, 1.0, std_U))


def mean_differences(z_NU: Floats, is_positive_N: Flags, is_training_N: Flags) -> Floats:
    """Mean of the positive training texts minus that of the others, ``(U,)``."""
    return np.asarray(z_NU[is_training_N & is_positive_N].mean(0) - z_NU[is_training_N & ~is_positive_N].mean(0))


class Probe:
    """A logistic regression on standardised activations.

    The penalty is that of scikit-learn with ``C = 1 / K``: were the weights drawn from the prior that it is, the logits
    of a probe of any number of units would vary the same.

    Attributes:
        weight_K: of the units.
        bias: of the logit.

    Args:
        z_NK: activations of the units, at least one.
        is_positive_N: whether a text has the concept; both are among the training texts.
        is_training_N: the texts to fit.
    """

    def __init__(self, z_NK: Floats, is_positive_N: Flags, is_training_N: Flags) -> None:
        from sklearn.linear_model import LogisticRegression  # takes a second; most commands do not need it

        model = LogisticRegression(C=1 / z_NK.shape[1], class_weight="balanced", max_iter=1000)
        model.fit(z_NK[is_training_N], is_positive_N[is_training_N])
        self.weight_K: Floats = model.coef_[0]
        self.bias = float(model.intercept_[0])

    def is_right(self, z_NK: Floats, is_positive_N: Flags) -> Flags:
        """Whether each text is told rightly, ``(N,)``."""
        return np.asarray((z_NK @ self.weight_K + self.bias > 0) == is_positive_N)


def single_unit_logits(z_NU: Floats, is_positive_N: Flags, is_training_N: Flags) -> Floats:
    """The logits of :class:`Probe` with each unit alone, ``(N, U)``: all are fitted at once, by Newton's method."""
    z_MU, y_M1 = z_NU[is_training_N], is_positive_N[is_training_N, None]
    weight_M1 = class_weights(is_positive_N[is_training_N])[:, None] * len(z_MU)
    slope_U, bias_U = np.zeros(z_NU.shape[1]), np.zeros(z_NU.shape[1])
    for _ in range(_STEPS):
        p_MU = 1 / (1 + np.exp(-(z_MU * slope_U + bias_U)))
        error_MU, curvature_MU = weight_M1 * (p_MU - y_M1), weight_M1 * p_MU * (1 - p_MU)
        slope_gradient_U, bias_gradient_U = (error_MU * z_MU).sum(0) + slope_U, error_MU.sum(0)
        a_U, b_U, c_U = (curvature_MU * z_MU**2).sum(0) + 1, (curvature_MU * z_MU).sum(0), curvature_MU.sum(0)
        determinant_U = a_U * c_U - b_U**2
        slope_U = slope_U - (c_U * slope_gradient_U - b_U * bias_gradient_U) / determinant_U
        bias_U = bias_U - (a_U * bias_gradient_U - b_U * slope_gradient_U) / determinant_U
    return np.asarray(z_NU * slope_U + bias_U)
