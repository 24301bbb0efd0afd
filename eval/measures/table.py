"""``results.json``: everything that a report shows, from the records of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from monolora.data.prompt_sets import PromptSet
from monolora.eval.judges.base import Judge
from monolora.eval.measures.columns import Cell, Column, Measured, Whole
from monolora.eval.measures.comparisons import compare
from monolora.eval.measures.details import agreement_rows, category_rows, count_rows, cut_rows, invalid_rows, label_rows
from monolora.eval.measures.drift import Drifts, drift_columns
from monolora.eval.measures.gathered import Gathered
from monolora.eval.measures.model import Model
from monolora.eval.measures.sparse import ALIGNMENT, Sparsities, sparsity_columns
from monolora.eval.measures.tasks import task_columns
from monolora.eval.measures.verdicts import flag_columns, policy_columns, refusal_columns
from monolora.eval.measures.writing import writing_columns
from monolora.eval.records import Judgement, Response

FORMAT = 1
_ALONG_STEPS = ("/flagged", "/refusal", "/over-refusal", "/drift")


def build(
    run: Mapping[str, Any],
    models: Sequence[Model],
    sets: Sequence[PromptSet],
    judges: Sequence[Judge],
    responses: Mapping[str, Mapping[str, Mapping[str, Response]]],
    judgements: Mapping[str, Mapping[str, Judgement]],
    sparsity: Sparsities,
    drift: Drifts,
    seed: int = 0,
) -> dict[str, Any]:
    """The results of a run, as JSON.

    Args:
        run: what is kept of ``run.json``.
        models: the base first.
        sets: prompts; the first safety set is that of table 2's columns.
        judges: in the order of the columns.
        responses: by set, model name and prompt key; what is missing counts as invalid.
        judgements: by judge name and response key; likewise.
        sparsity: by model name and ``alignment`` or the task's set; models without units are not in it.
        drift: by model name and prompt key of the first safety set; empty where it was not measured.
        seed: of the bootstrap.
    """
    found = gathered(models, sets, responses, judgements)
    columns = columns_of(found, models, judges, sparsity, drift)
    measured = [each for each in columns if isinstance(each, Measured)]
    compared = compare(measured, models, seed)
    cells = _cells(columns, compared.cells, models)
    judged = [(each, _judges_of(each, judges)) for each in found]
    harm = [(each, [judge for judge in own if judge.kind == "harm"]) for each, own in judged]
    flags = {f"{each.set.name}/{judge.name}/flagged" for each, own in harm for judge in own}
    return {
        "format": FORMAT,
        "title": _title(models, sets),
        "run": dict(run),
        "models": [model._asdict() | {"notes": list(model.notes)} for model in models],
        "judges": [_judge(judge) for judge in judges],
        "sets": [_set(each) for each in sets],
        "columns": [each.column._asdict() for each in columns],
        "cells": cells,
        "differences": compared.differences,
        "agreement": [row for each, own in harm for row in agreement_rows(each, own)],
        "categories": [*category_rows((each for each in measured if each.column.id in flags), models)],
        "labels": [row for each, own in harm for row in label_rows(each, own)],
        "counts": [row for each in found for row in count_rows(each)],
        "invalid": [row for each, own in judged for row in invalid_rows(each, own)],
        "judged_in_part": [row for each, own in judged for row in cut_rows(each, own)],
        "steps": [*_steps([each.column for each in columns], models, cells)],
    }


def gathered(
    models: Sequence[Model],
    sets: Sequence[PromptSet],
    responses: Mapping[str, Mapping[str, Mapping[str, Response]]],
    judgements: Mapping[str, Mapping[str, Judgement]],
) -> list[Gathered]:
    """Set by set; arguments as for :func:`build`."""
    return [
        Gathered(set=each, models=models, responses=responses.get(each.name, {}), judgements=judgements)
        for each in sets
    ]


def columns_of(
    found: Sequence[Gathered],
    models: Sequence[Model],
    judges: Sequence[Judge],
    sparsity: Sparsities,
    drift: Drifts,
) -> list[Measured | Whole]:
    """All columns in their order: those of table 2 in its order, then the others."""
    safety = [each for each in found if each.set.purpose == "safety"]
    over_refusal = [each for each in found if each.set.purpose == "over-refusal"]
    tasks = {each.set.name: each for each in found if each.set.purpose == "task"}
    first = safety[0].set.name if safety else ""
    short = {name: "task" if len(tasks) == 1 else name.removeprefix("task:") for name in tasks}
    sparsity_titles = {name: f"{short[name]} sparsity" for name in tasks}
    if safety:
        sparsity_titles = {ALIGNMENT: "align. sparsity"} | sparsity_titles
    columns: list[Iterable[Measured | Whole]] = [
        *(policy_columns(each, _judges_of(each, judges), each.set.name == first) for each in safety + over_refusal),
        sparsity_columns(models, sparsity, sparsity_titles, first),
        *(flag_columns(each, _judges_of(each, judges), each.set.name == first) for each in safety + over_refusal),
        *(task_columns(each, f"{short[name]} perf.") for name, each in tasks.items()),
        *(refusal_columns(each, _judges_of(each, judges)) for each in safety + over_refusal),
        *(drift_columns(each, drift) for each in safety[:1] if drift),
        *(writing_columns(each) for each in safety),
    ]
    kept = [each for group in columns for each in group if isinstance(each, Whole) or each.prompts]
    return sorted(kept, key=lambda each: not each.column.headline)


def _judges_of(found: Gathered, judges: Sequence[Judge]) -> list[Judge]:
    """Who judges a set: nobody the tasks; of over-refusal, those who did."""
    if found.set.purpose == "safety":
        return list(judges)
    return [judge for judge in judges if found.set.purpose == "over-refusal" and found.was_judged_by(judge)]


def _cells(
    columns: Sequence[Measured | Whole], compared: Mapping[str, Mapping[str, Cell]], models: Iterable[Model]
) -> dict[str, dict[str, Cell | None]]:
    """By model and column; None where there is nothing to measure."""
    by_column = {
        each.column.id: each.cells if isinstance(each, Whole) else compared[each.column.id] for each in columns
    }
    ownless = {each.column.id for each in columns if not each.column.of_base}
    return {
        model.name: {
            name: None if name in ownless and not place else cells[model.name] for name, cells in by_column.items()
        }
        for place, model in enumerate(models)
    }


def _steps(
    columns: Iterable[Column], models: Sequence[Model], cells: Mapping[str, Mapping[str, Cell | None]]
) -> Iterator[dict[str, Any]]:
    """Values along the checkpoints in the order of their steps; the base is step 0."""
    along = sorted((model for model in models if model.step is not None), key=lambda model: model.step or 0)
    if not along:
        return
    for column in columns:
        if not column.headline and not column.id.endswith(_ALONG_STEPS):
            continue
        for model in (models[0], *along):
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
