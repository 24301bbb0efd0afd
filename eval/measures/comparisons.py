"""From the tidy table to cells with intervals, and to the differences between models.

Each model is compared with the base, and all others but checkpoints with each other, on the prompts that are valid for
both. Flags are tested by McNemar's exact test on distinct prompts, means by the paired bootstrap. The p-values of one
pair of models, over all columns that have a test, are one family of Holm's correction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolora.eval.measures.table import Cell, Matrix, Model, Table, cell
from monolora.stats import RESAMPLES, Estimate, bootstrap, holm, mcnemar, wilson

Floats = NDArray[np.float64]
Difference = dict[str, Any]


class Comparisons(NamedTuple):
    """What the prompts tell.

    Attributes:
        cells: by column id and model name.
        differences: of pairs of models, pair by pair, in the order of the columns.
    """

    cells: dict[str, dict[str, Cell]]
    differences: list[Difference]


class Pair(NamedTuple):
    """Rows of two models; the difference is the first minus the second."""

    model: int
    against: int


def pairs(models: Sequence[Model]) -> list[Pair]:
    """Every model against the base, which is the first; then the others, checkpoints left out, against each other."""
    others = [row for row, model in enumerate(models) if row and model.step is None]
    return [
        *(Pair(row, 0) for row in range(1, len(models))),
        *(Pair(later, earlier) for earlier, later in combinations(others, 2)),
    ]


def compare(table: Table, seed: int, resamples: int = RESAMPLES) -> Comparisons:
    """All cells and differences; columns over the same prompts share their resamples."""
    models, all_pairs = table.models, pairs(table.models)
    columns = table.matrices()
    cells: dict[str, dict[str, Cell]] = {}
    differences: dict[tuple[str, Pair], Difference] = {}
    for block in _blocks(columns):
        own, paired = _estimates(block, all_pairs, seed, resamples)
        for matrix, of_models, of_pairs in zip(block, own, paired, strict=True):
            name = matrix.column.id
            cells[name] = {model.name: _cell(matrix, row, of_models[row]) for row, model in enumerate(models)}
            for pair, estimate in zip(all_pairs, of_pairs, strict=True):
                differences[name, pair] = _difference(matrix, pair, estimate, models)
    return Comparisons(cells, list(_corrected(differences, [matrix.column.id for matrix in columns], all_pairs)))


def _blocks(columns: Sequence[Matrix]) -> list[list[Matrix]]:
    """Columns over the same prompts, together."""
    blocks: dict[tuple[str, ...], list[Matrix]] = {}
    for matrix in columns:
        blocks.setdefault(matrix.prompts, []).append(matrix)
    return list(blocks.values())


def _estimates(
    block: Sequence[Matrix], all_pairs: Sequence[Pair], seed: int, resamples: int
) -> tuple[list[list[Estimate | None]], list[list[Estimate | None]]]:
    """By column, of each model and of each pair."""
    values_CMP = np.stack([matrix.values_MP for matrix in block])
    models, prompts = values_CMP.shape[1:]
    # NaN where either is invalid
    differences_CQP = (
        values_CMP[:, [pair.model for pair in all_pairs]] - values_CMP[:, [pair.against for pair in all_pairs]]
    )
    both_CKP = np.concatenate([values_CMP, differences_CQP], axis=1)
    rows = bootstrap(both_CKP.reshape(-1, prompts), block[0].weights_P, resamples, seed)
    width = both_CKP.shape[1]
    by_column = [rows[start : start + width] for start in range(0, len(rows), width)]
    return [own[:models] for own in by_column], [own[models:] for own in by_column]


def _cell(matrix: Matrix, row: int, estimate: Estimate | None) -> Cell:
    values_P, weights_P = matrix.values_MP[row], matrix.weights_P
    valid_P = ~np.isnan(values_P)
    n = int(weights_P @ valid_P)
    invalid = int(weights_P.sum()) - n
    if estimate is None:
        return cell(None, n, invalid)
    low, high = estimate.low, estimate.high
    if matrix.column.is_flag and low is None:
        low, high = (100 * end for end in wilson(int((values_P[valid_P] > 0).sum()), int(valid_P.sum())))
    return cell(estimate.mean, n, invalid, low, high)


def _difference(matrix: Matrix, pair: Pair, estimate: Estimate | None, models: Sequence[Model]) -> Difference:
    column = matrix.column
    ours_P, theirs_P = matrix.values_MP[pair.model], matrix.values_MP[pair.against]
    valid_P = ~np.isnan(ours_P) & ~np.isnan(theirs_P)
    gained, lost = int((ours_P[valid_P] > theirs_P[valid_P]).sum()), int((ours_P[valid_P] < theirs_P[valid_P]).sum())
    p = None
    if column.test is not None and (column.of_base or pair.against > 0) and estimate is not None:
        p = mcnemar(gained, lost) if column.is_flag else estimate.p
    return {
        "column": column.id,
        "model": models[pair.model].name,
        "against": models[pair.against].name,
        "difference": None if estimate is None else estimate.mean,
        "low": None if estimate is None else estimate.low,
        "high": None if estimate is None else estimate.high,
        "p": p,
        "p_holm": None,
        "n": int(matrix.weights_P @ valid_P),
        "gained": gained if column.is_flag else None,
        "lost": lost if column.is_flag else None,
    }


def _corrected(
    differences: dict[tuple[str, Pair], Difference], columns: Sequence[str], all_pairs: Sequence[Pair]
) -> Iterator[Difference]:
    for pair in all_pairs:
        family = [differences[column, pair] for column in columns]
        tested = [difference for difference in family if difference["p"] is not None]
        for difference, p in zip(tested, holm([difference["p"] for difference in tested]), strict=True):
            difference["p_holm"] = p
        yield from family
