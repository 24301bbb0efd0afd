"""Shares of the training images: how many of each class, which, and that the smaller are among the larger."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monolora.recipes.vision.finetune import stratified_sample

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(lambda values: torch.tensor(values))
FRACTIONS = st.floats(0.001, 1.0)
SEEDS = st.integers(0, 2**32 - 1)


@given(LABELS, FRACTIONS, SEEDS)
def test_each_class_has_its_share(labels_N: torch.Tensor, fraction: float, seed: int) -> None:
    indices = stratified_sample(labels_N, fraction, seed)
    drawn = Counter(labels_N[indices].tolist())
    assert drawn == {label: max(1, round(fraction * count)) for label, count in Counter(labels_N.tolist()).items()}
    assert indices.dtype == torch.int64
    assert (indices.diff() > 0).all()  # none twice, in their order


@given(LABELS, FRACTIONS, FRACTIONS, SEEDS)
def test_a_smaller_share_is_part_of_a_larger(labels_N: torch.Tensor, a: float, b: float, seed: int) -> None:
    smaller, larger = (set(stratified_sample(labels_N, fraction, seed).tolist()) for fraction in sorted((a, b)))
    assert smaller <= larger


@given(LABELS, SEEDS)
def test_all_is_all(labels_N: torch.Tensor, seed: int) -> None:
    assert stratified_sample(labels_N, 1.0, seed).tolist() == list(range(len(labels_N)))


def test_every_image_is_drawn_as_often_as_another() -> None:
    labels_N = torch.tensor([0] * 8 + [1] * 4)
    drawn = torch.zeros(12)
    for seed in range(400):
        drawn[stratified_sample(labels_N, 0.25, seed)] += 1
    # two of eight, one of four: each image in a quarter of the draws; 4 standard errors are 0.087
    torch.testing.assert_close(drawn / 400, torch.full((12,), 0.25), rtol=0, atol=0.087)


def test_the_seed_decides() -> None:
    labels_N = torch.arange(200) % 4
    first = stratified_sample(labels_N, 0.5, [0, 1])
    assert torch.equal(first, stratified_sample(labels_N, 0.5, [0, 1]))
    for other in ([0, 2], [1, 1], 0):
        assert not torch.equal(first, stratified_sample(labels_N, 0.5, other))


@pytest.mark.parametrize(("count", "fraction", "expected"), [(500, 0.1, 50), (9, 0.1, 1), (3, 0.1, 1), (16, 0.5, 8)])
def test_counts(count: int, fraction: float, expected: int) -> None:
    assert len(stratified_sample(torch.zeros(count, dtype=torch.int64), fraction, 0)) == expected
