"""``results.json``: everything that a report shows, from the records of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from monolora.data.prompt_sets import PromptSet
from monolora.eval.judges.base import Judge
from monolora.eval.measures.comparisons import compare
from monolora.eval.measures.details import agreement_rows, category_rows, count_rows, cut_rows, invalid_rows, label_rows
from monolora.eval.measures.measures import columns_of
from monolora.eval.measures.records import RunRecords, SetRecords
from monolora.eval.measures.table import Cell, Model, Table, tidy

FORMAT = 2


def build(run: Mapping[str, Any], records: RunRecords, seed: int = 0) -> dict[str, Any]:
    """The results of a run, as JSON.

    Args:
        run: what ``results.json`` repeats of ``run.json``.
        records: of the run; what is missing counts as invalid.
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
        "sets": [_set(each) for each in records.sets],
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
    """By model and column; None where there is nothing to measure."""
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
    spec = prompts.spec
    return {
        "name": prompts.name,
        "purpose": prompts.purpose,
        "rows": spec["rows"],
        "distinct": spec["distinct"],
        "sha256": spec["sha256"],
    }


def _title(models: Sequence[Model], sets: Sequence[PromptSet]) -> str:
    base, others = models[0], len(models) - 1
    with_others = f" and {others} finetuned model{'s' * (others > 1)}" if others else ""
    return f"{base.path or base.name}{with_others} on {', '.join(each.name for each in sets)}"
