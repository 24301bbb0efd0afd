"""Means and t-intervals, against scipy's and by hand."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from monolora.stats import Estimate, difference, estimate

VALUES = [0.52, 0.55, 0.51, 0.58, 0.53]


def test_half_width_by_hand() -> None:
    # deviation 1, t of 2 degrees of freedom 4.302653
    found = estimate({0: [1, 2, 3]})
    assert found is not None
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)


def test_one_encoder_is_the_t_interval_over_its_draws() -> None:
    expected = stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    found = estimate({3: VALUES})
    assert found is not None
    assert (found.low, found.high) == pytest.approx(expected)
    assert (found.mean, found.seeds, found.draws, found.n) == (pytest.approx(0.538), 1, 5, 5)


def test_each_of_several_encoders_counts_once() -> None:
    found = estimate({0: [0.1, 0.3], 1: [0.4, 0.4, 0.4], 2: [0.6]})
    expected = stats.ttest_1samp([0.2, 0.4, 0.6], 0).confidence_interval(0.95)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.4, *expected))
    assert (found.seeds, found.draws, found.n) == (3, 1, 3)


def test_one_run_has_no_interval() -> None:
    assert estimate({7: [0.5]}) == Estimate(0.5)


@pytest.mark.parametrize("values", [{}, {0: []}, {0: [], 1: []}])
def test_no_runs_have_no_mean(values: dict[int, list[float]]) -> None:
    assert estimate(values) is None


def test_draws_that_are_all_the_same_are_one_run() -> None:
    """As without wrong labels: an interval of no width would be taken for a precise number."""
    assert estimate({0: [0.25, 0.25, 0.25]}) == Estimate(0.25)
    two = estimate({0: [0.25, 0.25], 1: [0.5, 0.5]})
    assert two is not None
    assert (two.mean, two.seeds, two.draws) == (0.375, 2, 1)
    assert two.low is not None


def test_encoders_without_runs_do_not_count() -> None:
    assert estimate({0: [], 1: [0.5, 0.7]}) == estimate({1: [0.5, 0.7]})


def test_differences_are_paired() -> None:
    baseline = [0.50, 0.54, 0.49, 0.57, 0.50]
    expected = stats.ttest_rel(VALUES, baseline).confidence_interval(0.95)
    found = difference({0: VALUES}, {0: baseline})
    assert found is not None
    assert (found.low, found.high) == pytest.approx(expected)
    unpaired = estimate({0: VALUES})
    assert unpaired is not None
    assert found.half_width < unpaired.half_width


def test_differences_are_of_the_encoders_and_draws_that_both_have() -> None:
    found = difference({0: [0.5, 0.9], 1: [0.7], 2: [9.0]}, {1: [0.6, 0.0], 0: [0.2], 3: [5.0]})
    assert found is not None
    assert found.mean == pytest.approx((0.3 + 0.1) / 2)
    assert (found.seeds, found.draws) == (2, 1)
    assert difference({0: [0.5]}, {1: [0.5]}) is None


def test_another_unit_scales_all_three() -> None:
    assert Estimate(0.5, 0.25, 0.75, seeds=2).times(100) == Estimate(50, 25, 75, seeds=2)
    assert Estimate(0.5).times(100) == Estimate(50)
