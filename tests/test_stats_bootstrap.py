"""Bootstrap intervals equal scipy's, the normal approximation, and loops over the same draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from monolora import stats as module
from monolora.stats import Estimate, resampled_means


def _values(rows: int, prompts: int, seed: int = 0, missing: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.gamma(0.7, 20, size=(rows, prompts))
    return np.where(random.random(values.shape) < missing, np.nan, values)


def _weights(prompts: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + 1).choice([1.0, 2.0, 5.0], size=prompts)


def bootstrap(*given: Any, **more: Any) -> Estimate:
    """Means, ends and p-values of all rows as arrays; NaN for None."""
    rows = [[None] * 8 if each is None else each for each in module.bootstrap(*given, **more)]
    return Estimate(*np.array(rows, float).T)


def _weighted_mean(values: np.ndarray, weights: np.ndarray, axis: int = -1) -> np.ndarray:
    return (values * weights).sum(axis) / weights.sum(axis)


def test_paired_difference_against_scipy() -> None:
    a, b = _values(2, 300)
    b = 0.7 * a + 0.5 * b
    found = bootstrap((a - b)[None], np.ones(300))
    theirs = stats.bootstrap(
        (a, b),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        paired=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert found.mean[0] == pytest.approx(a.mean() - b.mean())
    # Either end has a Monte Carlo error of 0.7 % of the width.
    np.testing.assert_allclose([found.low[0], found.high[0]], theirs, atol=0.04 * width)


def test_weighted_mean_against_scipy() -> None:
    values, weights = _values(1, 200), _weights(200)
    found = bootstrap(values, weights)
    theirs = stats.bootstrap(
        (values[0], weights),
        _weighted_mean,
        paired=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.mean[0] == pytest.approx(np.average(values[0], weights=weights))
    np.testing.assert_allclose([found.low[0], found.high[0]], theirs, atol=0.04 * (theirs.high - theirs.low))


def test_normal_approximation() -> None:
    values = _values(3, 4000)
    found = bootstrap(values, np.ones(4000))
    error = values.std(1) / 4000**0.5
    for end, sign in ((found.low, -1), (found.high, 1)):
        np.testing.assert_allclose((end - values.mean(1)) / error, sign * 1.96, atol=0.15)


def test_half_of_the_flags() -> None:
    flags = np.repeat([[0.0, 100.0]], 500, axis=0).reshape(1, -1)
    found = bootstrap(flags, np.ones(1000))
    sd = 100 * (0.25 / 1000) ** 0.5
    np.testing.assert_allclose([found.low[0], found.high[0]], [50 - 1.96 * sd, 50 + 1.96 * sd], atol=0.15)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 99), prompts=st.integers(1, 12), missing=st.sampled_from([0.0, 0.3, 0.9]))
def test_resampled_means_against_a_loop(seed: int, prompts: int, missing: float) -> None:
    values, weights = _values(3, prompts, seed, missing), _weights(prompts, seed)
    found = resampled_means(values, weights, resamples=20, seed=seed)
    draws = np.random.default_rng(seed).integers(prompts, size=(20, prompts))
    for k, row in enumerate(values):
        for r, drawn in enumerate(draws):
            there = [place for place in drawn if not np.isnan(row[place])]
            expected = np.average(row[there], weights=weights[there]) if there else np.nan
            assert found[k, r] == pytest.approx(expected, nan_ok=True)


def test_a_weight_is_that_many_rows_drawn_together() -> None:
    values, weights = _values(1, 60), _weights(60)
    found = bootstrap(values, weights)
    rows = np.repeat(values[0], weights.astype(int))
    owner = np.repeat(np.arange(60), weights.astype(int))
    random = np.random.default_rng(3)
    means = []
    for _ in range(4000):
        drawn = random.integers(60, size=60)
        means.append(np.concatenate([rows[owner == each] for each in drawn]).mean())
    assert found.mean[0] == pytest.approx(rows.mean())
    low, high = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose([found.low[0], found.high[0]], [low, high], atol=0.06 * (high - low))
    # Rows taken for independent would promise more than is known.
    naive = bootstrap(rows[None], np.ones(len(rows)))
    assert naive.high[0] - naive.low[0] < 0.85 * (found.high[0] - found.low[0])


def test_missing_values_are_left_out() -> None:
    values, weights = _values(2, 500, missing=0.4), _weights(500)
    found = bootstrap(values, weights)
    for k, row in enumerate(values):
        there = ~np.isnan(row)
        alone = bootstrap(row[None, there], weights[there])
        assert found.mean[k] == pytest.approx(alone.mean[0])
        width = alone.high[0] - alone.low[0]
        np.testing.assert_allclose([found.low[k], found.high[k]], [alone.low[0], alone.high[0]], atol=0.06 * width)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    values, weights = _values(5, 80, missing=0.2), _weights(80)
    together = bootstrap(values, weights, resamples=500)
    for k in range(5):
        alone = bootstrap(values[k : k + 1], weights, resamples=500)
        np.testing.assert_allclose(
            [each[k] for each in together], [each[0] for each in alone], rtol=1e-12, equal_nan=True
        )


def test_parts_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    values, weights = _values(2, 31, missing=0.2), _weights(31)
    whole = resampled_means(values, weights, resamples=100)
    monkeypatch.setattr(module, "_AT_A_TIME", 31 * 7)
    np.testing.assert_allclose(resampled_means(values, weights, resamples=100), whole, rtol=1e-13)


def test_seed() -> None:
    values, weights = _values(1, 30), _weights(30)
    first, other = (bootstrap(values, weights, seed=seed) for seed in (4, 5))
    assert module.bootstrap(values, weights, seed=4) == module.bootstrap(values, weights, seed=4)
    assert first.mean == other.mean
    assert first.low != other.low


def test_counts_are_multinomial() -> None:
    counts = module._draw(np.random.default_rng(0), 20_000, 4)
    assert counts.shape == (20_000, 4)
    np.testing.assert_array_equal(counts.sum(1), 4)
    seen = np.bincount(counts[:, 0].astype(int), minlength=5)
    assert stats.chisquare(seen, 20_000 * stats.binom(4, 0.25).pmf(range(5))).pvalue > 0.001


def test_coverage_and_false_alarms() -> None:
    """Of 95 % intervals about 95 % hold the truth; the p-value calls about 5 % of nothings something."""
    random = np.random.default_rng(0)
    values = random.gamma(2.0, 1.0, size=(600, 150)) - 2.0
    found = bootstrap(values, np.ones(150), resamples=2000)
    assert 0.915 < np.mean((found.low <= 0) & (found.high >= 0)) < 0.975
    assert 0.025 < np.mean(found.p < 0.05) < 0.085


def test_p_against_the_t_test() -> None:
    values = np.random.default_rng(0).normal(0, 1, size=(200, 400))
    found = bootstrap(values, np.ones(400)).p
    theirs = stats.ttest_1samp(values, 0, axis=1).pvalue
    np.testing.assert_allclose(found, theirs, atol=0.035)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), shift=st.floats(-1, 1))
def test_p_inverts_the_interval(seed: int, shift: float) -> None:
    values = np.random.default_rng(seed).normal(shift, 2, size=(1, 40))
    found = bootstrap(values, np.ones(40), resamples=2000)
    if abs(found.p[0] - 0.05) > 0.002:
        assert (found.p[0] < 0.05) == (found.low[0] > 0 or found.high[0] < 0)


def test_p_ends() -> None:
    values = np.random.default_rng(0).normal(50, 1, size=(1, 100))
    assert bootstrap(values, np.ones(100)).p[0] == 2 / 10_001
    assert bootstrap(-values, np.ones(100)).p[0] == 2 / 10_001
    assert bootstrap(np.zeros((1, 100)), np.ones(100)).p[0] == 1


@pytest.mark.parametrize("prompts", [1, 2, 5, 9])
def test_few_prompts_prove_little(prompts: int) -> None:
    """The p-value is never below that of the test of signs."""
    values = np.linspace(1, 2, prompts)[None]
    assert bootstrap(values, np.ones(prompts)).p[0] == stats.binomtest(prompts, prompts).pvalue
    with_zeros = np.concatenate([values, np.zeros((1, 20))], axis=1)
    assert bootstrap(with_zeros, np.ones(prompts + 20)).p[0] >= stats.binomtest(prompts, prompts).pvalue


def test_same_values_have_no_interval() -> None:
    found = bootstrap(np.array([[3.0, 3.0, 3.0], [3.0, np.nan, np.nan]]), np.ones(3))
    assert found.mean.tolist() == [3, 3]
    assert np.isnan(found.low).all()
    assert np.isnan(found.high).all()


def test_nothing_valid() -> None:
    assert module.bootstrap(np.full((1, 4), np.nan), np.ones(4)) == [None]


def test_few_valid() -> None:
    """Resamples without a single value are no resamples of the mean."""
    values = np.full((1, 50), np.nan)
    values[0, :2] = 1.0, 3.0
    found = bootstrap(values, np.ones(50))
    assert (found.mean[0], found.low[0], found.high[0]) == (2, 1, 3)
