"""Columns of what the finetuning was for: the scores of the tasks, by generation, as their scorers give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from monolora.data.prompt_sets import Prompt
from monolora.data.scoring import CorpusMetric, RowMetric
from monolora.eval.measures.records import SetRecords
from monolora.eval.measures.table import BOOTSTRAP, MCNEMAR, PERCENT, Cell, Column, PromptValues, SetValues, cell
from monolora.eval.records import OK, Response


def task_columns(records: SetRecords) -> Iterator[PromptValues | SetValues]:
    """The metrics of a task's scorer that answers alone can give: those of each row, then those of the corpus."""
    if records.set.scorer is None:  # no task
        return
    column = partial(Column, set=records.set.name, aspect="task", group=f"{records.task} perf.")
    metrics = records.set.scorer.metrics
    for metric in metrics:
        if isinstance(metric, RowMetric) and metric.in_evaluation:
            yield _of_rows(records, metric, column)
    for metric in metrics:
        if isinstance(metric, CorpusMetric):
            head = column(**_described(metric), shown_in=())
            cells = {model.name: _of_corpus(records, metric, index) for index, model in enumerate(records.models)}
            yield SetValues(head, cells)


def _described(metric: RowMetric | CorpusMetric) -> dict[str, Any]:
    return {
        "metric": metric.name,
        "title": metric.title,
        "description": metric.description,
        "better": metric.better,
        "unit": PERCENT if metric.is_percentage else "",
    }


def _of_rows(records: SetRecords, metric: RowMetric, column: Callable[..., Column]) -> PromptValues:
    def value(prompt: Prompt, response: Response) -> float:
        return 100.0 * metric.value(response.text, prompt.reference or "")

    test = MCNEMAR if metric.is_flag else BOOTSTRAP
    tested = {"test": test, "headline": True, "shown_in": ("figure",)} if metric.is_headline else {}
    return records.values(column(**_described(metric), **tested), records.of_responses(value))


def _of_corpus(records: SetRecords, metric: CorpusMetric, model: int) -> Cell:
    """Over all rows that have a valid response, repeated prompts as often as the set has them."""
    responses = [records.response(records.models[model], prompt) for prompt in records.set.prompts]
    pairs = [
        (response.text, prompt.reference or "")
        for prompt, response in zip(records.set.prompts, responses, strict=True)
        if response is not None and response.status == OK
        for _ in range(prompt.weight)
    ]
    rows = sum(prompt.weight for prompt in records.set.prompts)
    if not pairs:
        return cell(None, 0, rows)
    answers, references = zip(*pairs, strict=True)
    return cell(metric.value(answers, references), len(pairs), rows - len(pairs))
