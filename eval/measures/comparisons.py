"""From values of each prompt to the table's cells, and to the differences between models.

Each model is compared with the base, and all others but checkpoints with each other, on the prompts that are valid for
both. Flags are tested by McNemar's exact test on distinct prompts, means by the paired bootstrap. The p-values of one
pair of models, over all columns that have a test, are one family of Holm's correction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolora.eval.measures.columns import Cell, Measured, cell, weights
from monolora.eval.measures.model import Model
from monolora.stats import RESAMPLES, Estimate, bootstrap, holm, mcnemar, wilson

Floats = NDArray[np.float64]
Difference = dict[str, Any]


class Compared(NamedTuple):
    """What the prompts tell.

    Attributes:
        cells: by column id and model name.
        differences: of pairs of models, pair by pair, in the order of the columns.
    """

    cells: dict[str, dict[str, Cell]]
    differences: list[Difference]


class Pair(NamedTuple):
    """Places of two models; the difference is the first minus the second."""

    model: int
    against: int


def pairs(models: Sequence[Model]) -> list[Pair]:
    """Every model against the base, which is the first; then the others, checkpoints left out, against each other."""
    others = [place for place, model in enumerate(models) if place and model.step is None]
    return [
        *(Pair(place, 0) for place in range(1, len(models))),
        *(Pair(later, earlier) for earlier, later in combinations(others, 2)),
    ]


def compare(columns: Sequence[Measured], models: Sequence[Model], seed: int, resamples: int = RESAMPLES) -> Compared:
    """All cells and differences; columns over the same prompts share their resamples."""
    wanted = pairs(models)
    cells: dict[str, dict[str, Cell]] = {}
    found: dict[tuple[str, Pair], Difference] = {}
    for block in _blocks(columns):
        own, differences = _estimates(block, wanted, seed, resamples)
        for column, of_models, of_pairs in zip(block, own, differences, strict=True):
            cells[column.column.id] = {
                model.name: _cell(column, place, of_models[place]) for place, model in enumerate(models)
            }
            for pair, estimate in zip(wanted, of_pairs, strict=True):
                found[column.column.id, pair] = _difference(column, pair, estimate, models)
    return Compared(cells, list(_corrected(found, [column.column.id for column in columns], wanted)))


class _Row(NamedTuple):
    """What the bootstrap says of one row of values; None where it can say nothing."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None


def _blocks(columns: Iterable[Measured]) -> Iterable[list[Measured]]:
    """Columns over the same prompts, together."""
    blocks: dict[tuple[str, ...], list[Measured]] = {}
    for column in columns:
        blocks.setdefault(tuple(prompt.key for prompt in column.prompts), []).append(column)
    return blocks.values()


def _estimates(
    block: Sequence[Measured], wanted: Sequence[Pair], seed: int, resamples: int
) -> tuple[list[list[_Row]], list[list[_Row]]]:
    """By column, of each model and of each pair."""
    values_CMP = np.stack([column.values for column in block])
    models, prompts = values_CMP.shape[1:]
    # NaN where either is invalid
    differences_CQP = values_CMP[:, [pair.model for pair in wanted]] - values_CMP[:, [pair.against for pair in wanted]]
    both_CKP = np.concatenate([values_CMP, differences_CQP], axis=1)
    rows = _rows(bootstrap(both_CKP.reshape(-1, prompts), weights(block[0].prompts), resamples, seed))
    width = both_CKP.shape[1]
    by_column = [rows[start : start + width] for start in range(0, len(rows), width)]
    return [each[:models] for each in by_column], [each[models:] for each in by_column]


def _rows(estimate: Estimate) -> list[_Row]:
    lists = (values.tolist() for values in estimate)
    return [_Row(*(None if np.isnan(value) else value for value in row)) for row in zip(*lists, strict=True)]


def _cell(column: Measured, model: int, found: _Row) -> Cell:
    values_P = column.values[model]
    valid_P = ~np.isnan(values_P)
    weights_P = weights(column.prompts)
    n = int(weights_P @ valid_P)
    low, high = found.low, found.high
    if column.is_flag and low is None and valid_P.any():
        low, high = (100 * end for end in wilson(int((values_P[valid_P] > 0).sum()), int(valid_P.sum())))
    return cell(found.value, n, int(weights_P.sum()) - n, low, high)


def _difference(column: Measured, pair: Pair, found: _Row, models: Sequence[Model]) -> Difference:
    ours_P, theirs_P = column.values[pair.model], column.values[pair.against]
    valid_P = ~np.isnan(ours_P) & ~np.isnan(theirs_P)
    gained, lost = int((ours_P[valid_P] > theirs_P[valid_P]).sum()), int((ours_P[valid_P] < theirs_P[valid_P]).sum())
    has_other = column.column.of_base or pair.against > 0
    tested = column.column.test is not None and has_other and bool(valid_P.any())
    p = (mcnemar(gained, lost) if column.is_flag else found.p) if tested else None
    return {
        "column": column.column.id,
        "model": models[pair.model].name,
        "against": models[pair.against].name,
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "p": p,
        "p_holm": None,
        "n": int(weights(column.prompts) @ valid_P),
        "gained": gained if column.is_flag else None,
        "lost": lost if column.is_flag else None,
    }


def _corrected(
    found: dict[tuple[str, Pair], Difference], columns: Sequence[str], wanted: Sequence[Pair]
) -> Iterator[Difference]:
    for pair in wanted:
        family = [found[column, pair] for column in columns]
        tested = [difference for difference in family if difference["p"] is not None]
        for difference, p in zip(tested, holm([each["p"] for each in tested]), strict=True):
            difference["p_holm"] = p
        yield from family
