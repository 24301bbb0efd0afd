"""What a threshold gets right, against samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.errors import InputError
from monolora.recipes.superposition.theory.crossings import best_accuracy


def by_samples(S: float, epsilon: float, count: int = 400_000) -> tuple[float, float]:
    """Of mono's best threshold on a fine grid, and of poly's 0."""
    generator = np.random.default_rng(0)
    x1, x2 = generator.random((2, count)) * (generator.random((2, count)) >= S)
    y = np.where(x1 == x2, generator.random(count) < 0.5, x1 > x2)
    z1, z2 = epsilon * generator.standard_normal((2, count))
    order = np.argsort(x1 + z1)
    ones_above = y.sum() - np.concatenate([[0], np.cumsum(y[order])])
    zeros_below = np.concatenate([[0], np.cumsum(~y[order])])
    # a threshold is between two samples, never among equal ones
    seen = (x1 + z1)[order]
    between = np.concatenate([[True], np.diff(seen) > 0, [True]])
    return (ones_above + zeros_below)[between].max() / count, float(((x1 + z1 > x2 + z2) == y).mean())


@pytest.mark.parametrize("S", [0.0, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("epsilon", [0.05, 0.3, 1.0])
def test_against_samples(S: float, epsilon: float) -> None:
    mono, poly = by_samples(S, epsilon)
    # the best threshold is chosen on the samples: a little above
    assert best_accuracy(S, "mono", epsilon) == pytest.approx(mono, abs=4e-3)
    assert best_accuracy(S, "poly", epsilon) == pytest.approx(poly, abs=3e-3)


@pytest.mark.parametrize("S", [0.0, 0.3, 0.7, 0.95])
def test_without_noise(S: float) -> None:
    """poly is wrong where a coin was; mono against samples."""
    assert best_accuracy(S, "poly") == pytest.approx(1 - S**2 / 2)
    assert best_accuracy(S, "mono") == pytest.approx(by_samples(S, 0.0)[0], abs=4e-3)
    assert best_accuracy(S, "poly", 1e-6) == pytest.approx(best_accuracy(S, "poly"), abs=1e-4)


def test_one_of_two_dense_features() -> None:
    """The integral of max(a, 1 - a)."""
    assert best_accuracy(0, "mono") == pytest.approx(0.75)


@given(S=st.floats(0, 0.99), epsilon=st.floats(0.01, 10))
@settings(deadline=None, max_examples=40)
def test_mono_is_never_the_better_one(S: float, epsilon: float) -> None:
    assert 0.5 <= best_accuracy(S, "mono", epsilon) <= best_accuracy(S, "poly", epsilon) + 1e-9


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match="representation"):
        best_accuracy(0.5, "both", 0.1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="sparsity"):
        best_accuracy(1.0, "mono")
