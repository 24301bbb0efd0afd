"""The rate of false discoveries among many tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control


def false_discovery_rate(p: ArrayLike) -> NDArray[np.float64]:
    """Q-values of Benjamini and Hochberg (1995): of the tests with ``q <= 0.05``, 5 % are false on average.

    It holds for independent tests and for ones that depend on each other positively, as those of units that fire on
    the same texts mostly do. For the chance of even one false finding see :func:`monolora.holm.holm`.

    Args:
        p: of all tests that were made, any shape; NaN stands for a test that could not be made and does not count.

    Returns:
        ``float64``, of the same shape; NaN where ``p`` is.
    """
    p_values = np.asarray(p, dtype=np.float64)
    q_values = np.full(p_values.shape, np.nan)
    made = ~np.isnan(p_values)
    q_values[made] = false_discovery_control(p_values[made])
    return q_values
