"""Intervals over seeds and prompts: against scipy where one of them is single, and by how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from monolora.recipes.studies.crossed import crossed


def _table(random: np.random.Generator, seeds: int, prompts: int, of_seeds: float, of_prompts: float) -> np.ndarray:
    rest = random.normal(size=(seeds, prompts))
    return 3 + of_seeds * random.normal(size=(seeds, 1)) + of_prompts * random.normal(size=(1, prompts)) + rest


@pytest.mark.parametrize("shape", [(1, 40), (5, 1)])
def test_one_of_them_alone_is_students_interval(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).normal(0.4, 1, shape)
    found = crossed(values)
    interval = stats.ttest_1samp(values.ravel(), 0)
    assert (found.low, found.high) == pytest.approx(tuple(interval.confidence_interval(0.95)))
    assert found.p == pytest.approx(interval.pvalue)
    assert found.mean == pytest.approx(values.mean())


def test_mean_squares_by_hand() -> None:
    """2 seeds, 3 prompts: squares of the effects, summed up by hand."""
    values = np.array([[1.0, 2.0, 6.0], [3.0, 8.0, 10.0]])
    seeds = 3 * ((3 - 5) ** 2 + (7 - 5) ** 2) / 1
    prompts = 2 * ((2 - 5) ** 2 + (5 - 5) ** 2 + (8 - 5) ** 2) / 2
    rest = sum((values[s, p] - (3, 7)[s] - (2, 5, 8)[p] + 5) ** 2 for s in range(2) for p in range(3)) / 2
    variance = (seeds + prompts - rest) / 6
    freedom = (seeds + prompts - rest) ** 2 / (seeds**2 + prompts**2 / 2 + rest**2 / 2)
    found = crossed(values)
    assert found.mean == 5
    assert found.high - 5 == pytest.approx(stats.t.ppf(0.975, freedom) * variance**0.5)


@pytest.mark.parametrize(("of_seeds", "of_prompts"), [(0.0, 0.0), (0.0, 1.0), (0.1, 1.0), (0.5, 1.0), (1.0, 0.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(of_seeds: float, of_prompts: float) -> None:
    """3 seeds, 60 prompts, 1,500 tables: 95 %, or more where a component is taken as 0 that is none."""
    random = np.random.default_rng(1)
    found = [crossed(_table(random, 3, 60, of_seeds, of_prompts)) for _ in range(1500)]
    share = np.mean([each.low <= 3 <= each.high for each in found])
    assert 0.925 < share <= 0.995


@pytest.mark.parametrize("of_seeds", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("shift", [-1.5, 0.0])
def test_intervals_of_flags(of_seeds: float, shift: float) -> None:
    """0 or 100: 3 seeds, 300 prompts, the mean, and the paired difference of two alike models.

    With three seeds that differ much, Satterthwaite's degrees of freedom promise a little more than they hold.
    """
    random = np.random.default_rng(5)
    truth = 100 * stats.norm.cdf(shift / np.sqrt(1 + 1 + of_seeds**2))
    held = []
    for _ in range(800):
        of_prompts = random.normal(size=(1, 300))
        ours, theirs = (
            100.0 * (shift + of_prompts + of_seeds * random.normal(size=(3, 1)) + random.normal(size=(3, 300)) > 0)
            for _ in range(2)
        )
        mean, difference = crossed(ours), crossed(ours - theirs)
        held.append([mean.low <= truth <= mean.high, difference.low <= 0 <= difference.high])
    assert np.all(np.mean(held, axis=0) > (0.93 if of_seeds < 0.3 else 0.9))
    assert np.all(np.mean(held, axis=0) <= 0.999)


def test_prompts_alone_would_claim_too_much() -> None:
    """What the crossing is for: where seeds differ, an interval over all values as if independent misses the truth."""
    random = np.random.default_rng(2)
    tables = [_table(random, 3, 60, 0.5, 1) for _ in range(300)]
    naive = [stats.ttest_1samp(table.ravel(), 0).confidence_interval(0.95) for table in tables]
    assert np.mean([each.low <= 3 <= each.high for each in naive]) < 0.6


def test_weights_are_repetitions_of_prompts_in_the_mean() -> None:
    values = np.random.default_rng(3).normal(size=(3, 5))
    weights = np.array([1.0, 2, 1, 3, 1])
    assert crossed(values, weights).mean == pytest.approx(np.repeat(values, weights.astype(int), axis=1).mean())
    assert crossed(values, np.full(5, 4.0)) == pytest.approx(crossed(values))


def test_prompts_that_a_seed_lacks_are_left_out() -> None:
    values = np.random.default_rng(4).normal(size=(3, 6))
    values[1, 2] = np.nan
    assert crossed(values) == pytest.approx(crossed(np.delete(values, 2, axis=1)))
    assert crossed(np.full((3, 4), np.nan)).prompts == 0


def test_what_does_not_vary_has_no_interval() -> None:
    for shape in ((3, 5), (1, 5), (1, 1)):
        found = crossed(np.full(shape, 0.1))
        assert found.mean == pytest.approx(0.1)
        assert np.isnan([found.low, found.high, found.p]).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-100, 100), st.floats(0.01, 100))
def test_shift_and_scale_go_through(seed: int, shift: float, scale: float) -> None:
    values = _table(np.random.default_rng(seed), 3, 8, 0.5, 1)
    found, moved = crossed(values), crossed(shift + scale * values)
    assert moved.mean == pytest.approx(shift + scale * found.mean, rel=1e-6, abs=1e-6)
    assert moved.high - moved.low == pytest.approx(scale * (found.high - found.low), rel=1e-5)
