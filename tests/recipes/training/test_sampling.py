"""The order of examples: grouped by length, and known from seed and epoch."""

from __future__ import annotations

import random

import pytest

from monolora.recipes.training.sampling import GroupedByLength

LENGTHS = random.Random(0).choices(range(5, 81), k=500)


def order(seed: int, epoch: int = 0) -> list[int]:
    sampler = GroupedByLength(16, LENGTHS, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def padding(indices: list[int]) -> float:
    """The share of padding in batches of 8 of this order."""
    batches = [[LENGTHS[k] for k in indices[start : start + 8]] for start in range(0, len(indices), 8)]
    return 1 - sum(LENGTHS) / sum(max(batch) * len(batch) for batch in batches)


def test_every_example_once_and_hardly_any_padding() -> None:
    assert sorted(order(3)) == list(range(500))
    shuffled = random.Random(1).sample(range(500), 500)
    assert padding(order(3)) < 0.3 * padding(shuffled)


def test_lengths_are_spread_over_the_epoch() -> None:
    """So that no part of a mixture, whose rows are longer than another's, comes first or last."""
    steps = 40  # of 16 rows and 7 rows more
    lengths = [100] * (8 * steps) + [10] * (8 * steps + 7)
    halves = []
    for seed in range(20):
        rows = list(GroupedByLength(16, lengths, seed))
        assert sorted(rows) == list(range(len(lengths)))
        assert lengths[rows[0]] == 100
        batches = [{lengths[row] for row in rows[start : start + 16]} for start in range(0, 16 * steps, 16)]
        assert sum(len(batch) == 1 for batch in batches) >= steps - 5  # a mega-batch has one mixed batch at most
        halves.append(sum(lengths[row] == 100 for row in rows[: 8 * steps]) / (8 * steps))
    assert 0.4 < sum(halves) / len(halves) < 0.6
    assert max(halves) < 0.8


@pytest.mark.parametrize("rows", [1, 7, 16, 17, 33])
def test_few_rows(rows: int) -> None:
    assert sorted(GroupedByLength(16, LENGTHS[:rows], 1)) == list(range(rows))


def test_seed_and_epoch_say_it_all() -> None:
    """So a resumed run sees what it would have seen; the global generator has no part in it."""
    assert order(3, 1) == order(3, 1)
    assert len({tuple(order(seed, epoch)) for seed in (3, 4) for epoch in (0, 1)}) == 4
