"""``results.json``: all that a report shows, as cells with intervals and differences between models.

Each model is compared with the base, and all others but checkpoints with each other, on the prompts that are valid for
both. Flags are tested by McNemar's exact test on distinct prompts, means by the paired bootstrap. The p-values of one
pair of models, over all columns that have a test, are one family of Holm's correction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolora.data.prompt_sets import PromptSet
from monolora.eval.judges.base import Judge
from monolora.eval.measures.details import agreement_rows, category_rows, count_rows, cut_rows, invalid_rows, label_rows
from monolora.eval.measures.measures import columns_of
from monolora.eval.measures.records import RunRecords, SetRecords
from monolora.eval.measures.table import Cell, Matrix, Model, Table, cell, tidy
from monolora.stats import RESAMPLES, Estimate, bootstrap, holm, mcnemar, wilson

Floats = NDArray[np.float64]
Difference = dict[str, Any]


class Comparisons(NamedTuple):
    """Statistics over the prompts.

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


FORMAT = 2


def build(run: Mapping[str, Any], records: RunRecords, seed: int = 0) -> dict[str, Any]:
    """The results of a run, as JSON.

    Args:
        run: the part of ``run.json`` to repeat in ``results.json``.
        records: of the run; missing ones count as invalid.
        seed: of the bootstrap.
    """
    models, by_set = records.models, records.by_set()
    table = tidy(models, columns_of(by_set))
    compared = compare(table, seed)
    cells = _cells(table, compared.cells)
    return {
        "format": FORMAT,
        "title": _title(models, records.sets),
        "run": dict(run),
        "models": [model._asdict() | {"notes": list(model.notes)} for model in models],
        "judges": [_judge(judge) for judge in records.judges],
        "sets": [_set(prompt_set) for prompt_set in records.sets],
        "columns": [column.stored() for column in table.columns],
        "cells": cells,
        "differences": compared.differences,
        "agreement": _rows(agreement_rows, by_set),
        "categories": category_rows(table, records.sets),
        "labels": _rows(label_rows, by_set),
        "counts": _rows(count_rows, by_set),
        "invalid": _rows(invalid_rows, by_set),
        "judged_in_part": _rows(cut_rows, by_set),
        "steps": [*_steps(table, cells)],
    }


def _rows(
    rows_of: Callable[[SetRecords], Iterable[dict[str, Any]]], by_set: Sequence[SetRecords]
) -> list[dict[str, Any]]:
    return [row for records in by_set for row in rows_of(records)]


def _cells(table: Table, compared: Mapping[str, Mapping[str, Cell]]) -> dict[str, dict[str, Cell | None]]:
    """By model and column; None where nothing can be measured."""
    base = table.models[0]
    by_column: Mapping[str, Mapping[str, Cell | None]] = {**table.cells, **compared}
    return {
        model.name: {
            column.id: by_column[column.id][model.name] if column.of_base or model is not base else None
            for column in table.columns
        }
        for model in table.models
    }


def _steps(table: Table, cells: Mapping[str, Mapping[str, Cell | None]]) -> Iterator[dict[str, Any]]:
    """Values along the checkpoints in the order of their steps; the base is step 0."""
    along = sorted((model for model in table.models if model.step is not None), key=lambda model: model.step or 0)
    if not along:
        return
    for column in table.columns:
        if not column.headline and "steps" not in column.shown_in:
            continue
        for model in (table.models[0], *along):
            cell = cells[model.name][column.id]
            if cell is not None and cell["value"] is not None:
                ends = {name: cell[name] for name in ("value", "low", "high")}
                yield {"column": column.id, "step": model.step or 0, "model": model.name} | ends


def _judge(judge: Judge) -> dict[str, Any]:
    return {
        "name": judge.name,
        "kind": judge.kind,
        "scores": list(judge.scores),
        "unsafe": list(judge.unsafe),
        "threshold": judge.threshold,
    }


def _set(prompts: PromptSet) -> dict[str, Any]:
    spec = {key: prompts.spec[key] for key in ("rows", "distinct", "sha256")}
    return {"name": prompts.name, "purpose": prompts.purpose} | spec


def _title(models: Sequence[Model], sets: Sequence[PromptSet]) -> str:
    base, others = models[0], len(models) - 1
    with_others = f" and {others} finetuned model{'s' * (others > 1)}" if others else ""
    return f"{base.path or base.name}{with_others} on {', '.join(prompt_set.name for prompt_set in sets)}"
