"""Cohen's kappa against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from monolora.stats import kappa

rows = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 4)), min_size=2, max_size=40)


@settings(deadline=None)
@given(rows)
def test_kappa(rows: list[tuple[bool, bool, int]]) -> None:
    a, b, weights = (np.array(each) for each in zip(*rows, strict=True))
    assume(len({*a, *b}) == 2)
    found = kappa(a, b, weights.astype(float))
    assert found == pytest.approx(cohen_kappa_score(a, b, sample_weight=weights), abs=1e-12)
    repeated = cohen_kappa_score(np.repeat(a, weights), np.repeat(b, weights))
    assert found == pytest.approx(repeated, abs=1e-12)


def test_ends() -> None:
    flags = np.array([True, False, True, False])
    assert kappa(flags, flags, np.ones(4)) == 1
    assert kappa(flags, ~flags, np.ones(4)) == -1
    assert kappa(flags, np.array([True, True, False, False]), np.ones(4)) == 0
    assert kappa(flags, np.zeros(4, bool), np.ones(4)) == 0


@pytest.mark.parametrize("flag", [True, False])
def test_all_the_same_says_nothing(flag: bool) -> None:
    same = np.full(5, flag)
    assert kappa(same, same, np.ones(5)) is None


def test_no_responses() -> None:
    assert kappa(np.zeros(0, bool), np.zeros(0, bool), np.zeros(0)) is None
