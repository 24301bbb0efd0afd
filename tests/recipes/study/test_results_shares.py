"""Intervals of shares: against scipy and a root found by bisection, and by how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from monolora.eval.measures.table import BOOTSTRAP, MCNEMAR, Column, Test
from monolora.random_effects import crossed, of_difference, of_share
from monolora.recipes.study.results import BASE, Values


@pytest.mark.parametrize(("flagged", "prompts"), [(3, 40), (20, 40), (39, 40)])
def test_a_score_interval(flagged: int, prompts: int) -> None:
    """Its ends are the shares that are as many of their own standard errors away as Student's quantile."""
    values = np.repeat([100.0, 0.0], [flagged, prompts - flagged])[None]
    found = of_share(crossed(values))
    share, quantile = flagged / prompts, stats.t.ppf(0.975, prompts - 1)

    def away(true: float) -> float:
        # the sample's variance has prompts - 1 below
        return float((share - true) ** 2 * (prompts - 1) - quantile**2 * true * (1 - true))

    ends = optimize.brentq(away, 0, share), optimize.brentq(away, share, 1)
    none = stats.binomtest(0, prompts).proportion_ci(method="wilson").high
    assert found.low == pytest.approx(100 * min(ends[0], 1 - none))
    assert found.high == pytest.approx(100 * max(ends[1], none))


@pytest.mark.parametrize("value", [0.0, 100.0])
def test_flags_that_are_all_the_same(value: float) -> None:
    found = of_share(crossed(np.full((3, 30), value), np.array([1.0, 2, 3] * 10)))
    expected = stats.binomtest(30 if value else 0, 30).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((100 * expected.low, 100 * expected.high))


def test_one_flag_more_makes_no_interval_narrower() -> None:
    values = np.zeros((3, 83))
    before, difference = of_share(crossed(values)), of_difference(crossed(values))
    values[1, 5] = 100
    after, changed = of_share(crossed(values)), of_difference(crossed(values))
    assert after.high >= before.high
    assert changed.high - changed.low > difference.high - difference.low


@pytest.mark.parametrize("of_seeds", [0.0, 0.3])
@pytest.mark.parametrize("share", [0.005, 0.03, 0.15, 0.5])
def test_they_hold_the_truth(share: float, of_seeds: float) -> None:
    """3 seeds, 150 prompts: the mean, and the paired difference of two alike models.

    With seeds that differ much, Satterthwaite's degrees of freedom promise a little more than they hold.
    """
    random = np.random.default_rng(5)
    shift = stats.norm.ppf(share) * np.sqrt(2 + of_seeds**2)
    held = []
    for _ in range(400):
        of_prompts = random.normal(size=(1, 150))
        ours, theirs = (
            100.0 * (shift + of_prompts + of_seeds * random.normal(size=(3, 1)) + random.normal(size=(3, 150)) > 0)
            for _ in range(2)
        )
        mean, difference = of_share(crossed(ours)), of_difference(crossed(ours - theirs))
        held.append([mean.low <= 100 * share <= mean.high, difference.low <= 0 <= difference.high])
    assert np.all(np.mean(held, axis=0) > (0.9 if of_seeds else 0.93))


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_intervals_of_a_whole_column_hold_the_truth(share: float) -> None:
    """As a report has them: a base and four adapters that are alike, 3 seeds that differ, 150 prompts."""
    random = np.random.default_rng(11)
    column = Column(
        metric="flagged",
        set="beavertails",
        judge="judge",
        aspect="harm",
        title="flagged",
        group="",
        description="made up",
    )
    shift = stats.norm.ppf(share) * np.sqrt(2 + 0.1**2)
    held = []
    for _ in range(250):
        of_prompts = shift + random.normal(size=(1, 150))
        of = {BASE: 100.0 * (of_prompts + random.normal(size=(1, 150)) > 0)}
        for name in "abcd":
            seeds = 0.1 * random.normal(size=(3, 1))
            of[name] = 100.0 * (of_prompts + seeds + random.normal(size=(3, 150)) > 0)
        values = Values(column, np.ones(150), of)
        mean, difference = values.mean("a"), values.difference("a", "b")
        assert values.are_flags
        assert mean is not None
        assert difference is not None
        held.append([mean.low <= 100 * share <= mean.high, difference.low <= 0 <= difference.high])
    assert np.all(np.mean(held, axis=0) > 0.93)


@pytest.mark.parametrize(("test", "is_flag"), [(MCNEMAR, True), (None, True), (BOOTSTRAP, False)])
def test_a_mean_of_shares_is_no_share_of_flags_although_all_are_whole(test: Test | None, is_flag: bool) -> None:
    """As of silent tokens: 20 prompts without an exception say more than 20 flags."""
    column = Column(metric="m", aspect="sparsity", set="s", title="", group="", description="", test=test)
    values = Values(column, np.ones(20), {"mono": np.full((3, 20), 100.0)})
    assert values.are_flags == is_flag
    estimate = values.mean("mono")
    assert estimate is not None
    assert (estimate.interval is not None) == is_flag
