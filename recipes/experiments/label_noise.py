"""Wrong training labels: an exact number of them, each of another class."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch

from monolora.errors import InputError


def noisy_labels(labels_N: torch.Tensor, classes: int, rate: float, seed: int | Sequence[int]) -> torch.Tensor:
    """Labels of which exactly ``floor(N * rate)`` are wrong.

    The places are drawn without replacement, each wrong label uniformly from the other classes. With the same seed, a
    higher rate only adds wrong labels to those of a lower one: rates are compared on as equal terms as can be.

    Args:
        labels_N: ``int64``, 0 to ``classes - 1``, on the CPU.
        classes: how many there are.
        rate: 0 to 1.
        seed: one number or several.

    Returns:
        A new tensor like ``labels_N``.

    Raises:
        InputError: for a rate outside 0 to 1, and for one class only.
    """
    if not 0 <= rate <= 1:
        raise InputError(f"A noise rate must be within 0 and 1, got {rate}.")
    if classes < 2:
        raise InputError("Wrong labels need at least two classes.")
    random = np.random.default_rng(seed)
    places_N = random.permutation(len(labels_N))
    shifts_N = random.integers(1, classes, len(labels_N))
    wrong = int(len(labels_N) * Fraction(str(float(rate))))  # as it is written: 0.29 * 100 is 28.999… in binary
    noisy_N = labels_N.clone()
    chosen = torch.from_numpy(places_N[:wrong])
    noisy_N[chosen] = (labels_N[chosen] + torch.from_numpy(shifts_N[:wrong])) % classes
    return noisy_N
