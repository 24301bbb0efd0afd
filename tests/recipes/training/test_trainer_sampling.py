"""The order of examples: grouped by length, and known from seed and epoch."""

from __future__ import annotations

import random

from monolora.recipes.training.trainer import GroupedByLength

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


def test_seed_and_epoch_say_it_all() -> None:
    """So a resumed run sees what it would have seen; the global generator has no part in it."""
    assert order(3, 1) == order(3, 1)
    assert len({tuple(order(seed, epoch)) for seed in (3, 4) for epoch in (0, 1)}) == 4
