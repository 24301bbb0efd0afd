"""Q-values against the definition of Benjamini and Hochberg."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.stats import false_discovery_rate

P = st.one_of(st.floats(0, 1), st.just(float("nan")))


def _by_definition(p: list[float], at: int) -> float:
    """The least rate at which the test would be among the discoveries."""
    made = [each for each in p if not np.isnan(each)]
    cuts = [cut for cut in made if cut >= p[at]]
    return min(1.0, *(cut * len(made) / sum(each <= cut for each in made) for cut in cuts))


@settings(deadline=None)
@given(st.lists(P, max_size=20))
def test_equals_the_definition(p: list[float]) -> None:
    expected = [float("nan") if np.isnan(each) else _by_definition(p, at) for at, each in enumerate(p)]
    assert false_discovery_rate(p).tolist() == pytest.approx(expected, nan_ok=True, rel=1e-12)


def test_tests_that_could_not_be_made_do_not_count() -> None:
    q = false_discovery_rate(np.array([[0.01, np.nan], [0.04, np.nan]]))
    np.testing.assert_allclose(q, [[0.02, np.nan], [0.04, np.nan]])


def test_nothing_to_correct() -> None:
    assert false_discovery_rate([]).shape == (0,)
    assert np.isnan(false_discovery_rate([np.nan])).all()
