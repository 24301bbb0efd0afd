"""Intervals over seeds and prompts: against scipy where one of them is single, and by how often they hold the truth."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from monolora.random_effects import crossed, seed_effects


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


def test_seeds_that_are_alike_by_luck_are_taken_to_differ_as_all_do() -> None:
    """Four models, 3 seeds: intervals of a difference hold the truth as often where its own seeds hardly differ."""
    random = np.random.default_rng(6)
    held = []
    for _ in range(1200):
        first, *others = (_table(random, 3, 60, 0.25, 1) for _ in range(4))
        pairs = [one - other for one, other in combinations((first, *others), 2)]
        difference = pairs[0]
        own, among = crossed(difference), crossed(difference, seeds_differ=seed_effects(pairs, independent=3))
        by_luck = seed_effects([difference]).variance == 0
        held.append([by_luck, own.low <= 0 <= own.high, among.low <= 0 <= among.high])
    by_luck, own, among = np.array(held).T
    assert 0.1 < by_luck.mean() < 0.4
    assert own[by_luck].mean() < 0.88
    assert among[by_luck].mean() > 0.9
    assert 0.94 < among.mean() < 0.995


def test_seed_effects_of_pairs_are_those_of_the_interaction() -> None:
    """Of all pairs of models: twice the mean square of model and seed, over prompts, less what the rest gives."""
    tables = np.random.default_rng(7).normal(size=(4, 3, 8)) + 5 * np.random.default_rng(8).normal(size=(4, 3, 1))
    found = seed_effects([one - other for one, other in combinations(tables, 2)], independent=3)
    means = tables.mean(2)
    interaction = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean()
    rest = tables - means[:, :, None]
    rest = rest - rest.mean(0)
    rest = rest - rest.mean(1, keepdims=True)
    seeds = 2 * (interaction**2).sum() / (3 * 2)
    within = 2 * (rest**2).sum() / (3 * 2 * 7) / 8
    assert found.variance == pytest.approx(seeds - within)


def test_a_model_without_prompts_says_nothing_of_seeds() -> None:
    table = np.random.default_rng(9).normal(size=(3, 5))
    for prompts in (0, 1):
        lacking = np.where(np.arange(5) < prompts, table, np.nan)
        assert seed_effects([table, lacking]) == seed_effects([lacking, table]) == seed_effects([table])
        assert seed_effects([lacking]).variance == 0


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
    assert crossed(np.full((3, 4), np.nan)) is None


def test_what_does_not_vary_has_no_interval() -> None:
    for shape in ((3, 5), (1, 5), (1, 1)):
        found = crossed(np.full(shape, 0.1))
        assert found.mean == pytest.approx(0.1)
        assert (found.low, found.high, found.p) == (None, None, None)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-100, 100), st.floats(0.01, 100))
def test_shift_and_scale_go_through(seed: int, shift: float, scale: float) -> None:
    values = _table(np.random.default_rng(seed), 3, 8, 0.5, 1)
    found, moved = crossed(values), crossed(shift + scale * values)
    assert moved.mean == pytest.approx(shift + scale * found.mean, rel=1e-6, abs=1e-6)
    assert moved.high - moved.low == pytest.approx(scale * (found.high - found.low), rel=1e-5)
