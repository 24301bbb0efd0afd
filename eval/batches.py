"""Batches that do not depend on what is done already."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Rows to compute together.

    Attributes:
        rows: all of them, each with its ``key``.
        wanted: keys of those whose result is not there yet; the others only keep the batch as it was.
    """

    rows: list[Mapping[str, Any]]
    wanted: set[str]


def fixed_batches(
    rows: Sequence[Mapping[str, Any]],
    done: Collection[str],
    batch_size: int,
    order: Callable[[Mapping[str, Any]], Any],
) -> list[Batch]:
    """Batches of all rows, the largest first, without those that are done whole.

    What a row's result is depends, by rounding, on what is padded beside it. So a run that goes on has to compute in
    the batches in which it would have computed anyway.

    Args:
        rows: of the whole stage, done or not.
        done: keys of those that have a result.
        batch_size: rows at a time.
        order: what to sort by, such as the length; rows that are equal in it are sorted by key.
    """
    ordered = sorted(rows, key=lambda row: (order(row), row["key"]), reverse=True)
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    made = [Batch(batch, {row["key"] for row in batch} - set(done)) for batch in batches]
    return [batch for batch in made if batch.wanted]
