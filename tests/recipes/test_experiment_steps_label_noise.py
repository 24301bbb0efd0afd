"""Wrong labels: how many, which, and that none is the true one."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from monolora.errors import InputError
from monolora.recipes.experiment_steps import noisy_labels


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 400),
    classes=st.integers(2, 12),
    percent=st.integers(0, 100),
    seed=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3),
)
def test_counts_are_exact_and_every_change_is_one(count: int, classes: int, percent: int, seed: list[int]) -> None:
    labels = torch.from_numpy(np.random.default_rng(count).integers(0, classes, count))
    before = labels.clone()
    noisy = noisy_labels(labels, classes, percent / 100, seed)
    assert int((noisy != labels).sum()) == count * percent // 100  # a label "changed" into the true one would lack here
    assert noisy.min() >= 0
    assert noisy.max() < classes
    assert noisy.dtype == labels.dtype
    assert torch.equal(labels, before)


@pytest.mark.parametrize("count", [100, 10_000, 50_000])
def test_rates_are_what_they_are_written_as(count: int) -> None:
    labels = torch.zeros(count, dtype=torch.int64)
    wrong = [int((noisy_labels(labels, 3, percent / 100, 0) != 0).sum()) for percent in range(101)]
    assert wrong == [int(count * Fraction(percent, 100)) for percent in range(101)]
    assert any(int(count * (percent / 100)) != wrong[percent] for percent in range(101))  # where binary fractions fail


def test_wrong_labels_are_uniform_over_the_other_classes() -> None:
    classes, each = 5, 4000
    labels = torch.arange(classes).repeat_interleave(each)
    noisy = noisy_labels(labels, classes, 1.0, 3)
    for label in range(classes):
        counts = torch.bincount(noisy[labels == label], minlength=classes)
        assert counts[label] == 0
        others = np.delete(counts.numpy(), label)
        assert chisquare(others).pvalue > 1e-3


def test_places_are_uniform() -> None:
    labels, draws = torch.zeros(20, dtype=torch.int64), 2000
    hits = sum((noisy_labels(labels, 2, 0.25, [1, draw]) for draw in range(draws)), torch.zeros_like(labels))
    assert int(hits.sum()) == 5 * draws
    # five of twenty without replacement: the variance of a count is that much below a free draw's
    assert chisquare(hits.numpy()).statistic * (20 / 15) < 50


def test_higher_rates_add_to_lower_ones() -> None:
    labels = torch.arange(7).repeat(50)
    low, high = (noisy_labels(labels, 7, rate, [0, 4]) for rate in (0.3, 0.8))
    changed = low != labels
    assert torch.equal(high[changed], low[changed])


def test_the_seed_decides() -> None:
    labels = torch.arange(4).repeat(30)
    first, again, other = (noisy_labels(labels, 4, 0.5, seed) for seed in ([0, 1], [0, 1], [1, 0]))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("rate", [-0.1, 1.01, float("nan")])
def test_other_rates_are_refused(rate: float) -> None:
    with pytest.raises(InputError, match="within 0 and 1"):
        noisy_labels(torch.zeros(4, dtype=torch.int64), 2, rate, 0)


def test_one_class_is_refused() -> None:
    with pytest.raises(InputError, match="two classes"):
        noisy_labels(torch.zeros(4, dtype=torch.int64), 1, 0.5, 0)
