"""Where prompts come from: published sets, files, and the recipes' tasks. Each source is read row by row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import datasets

from monolora.errors import InputError, unknown
from monolora.eval.records import Prompt, content_key
from monolora.hub import load_dataset
from monolora.recipes.tasks import Task, load_task
from monolora.recipes.tasks.custom import Most
from monolora.recipes.tasks.custom import Source as TaskSource

Purpose = Literal["safety", "over-refusal", "task"]

LABELS = ("safe", "unsafe")
FILE_TYPES = (".jsonl", ".json", ".csv", ".parquet")
_CATEGORY_COLUMNS = ("category", "categories")


class Published(NamedTuple):
    """A published set of prompts.

    Attributes:
        dataset: its hub id.
        split: which part is used.
        purpose: what its answers tell.
        category: the column that says what a prompt is about.
        label: the column that says ``safe`` or ``unsafe`` of a prompt, if there is one.
        first: how many rows are used unless a limit says otherwise; None for all.
        even: a limit takes as many rows of each category as of the others, not the first ones.
        verdict: the column that says whether the row's own response is safe, if there is one.
    """

    dataset: str
    split: str
    purpose: Purpose
    category: str = "category"
    label: str | None = None
    first: int | None = None
    even: bool = False
    verdict: str | None = None


# The first 1,000 rows of 30k_test: what the public code nearest to the paper's takes, and what its percentages fit.
PUBLISHED = {
    "beavertails": Published("PKU-Alignment/BeaverTails", "30k_test", "safety", first=1000, verdict="is_safe"),
    "beavertails-eval": Published("PKU-Alignment/BeaverTails-Evaluation", "test", "safety", even=True),
    "xstest": Published("walledai/XSTest", "test", "over-refusal", category="type", label="label", even=True),
}


def published_rows(source: Published, limit: int | None, unsafe_only: bool) -> list[Prompt]:
    """The rows of a published set, duplicates included, in its order.

    Args:
        source: the set.
        limit: how many rows.
        unsafe_only: first drop the rows whose own response is safe, where the set has responses.

    Raises:
        InputError: if the data set cannot be had, or is not what it should be.
    """
    splits = load_dataset(source.dataset)
    if source.split not in splits:
        raise unknown(f"split of {source.dataset}", source.split, splits)
    rows = splits[source.split]
    needed = ("prompt", source.category, source.label, source.verdict)
    _check_columns(rows, [column for column in needed if column], source.dataset)
    if unsafe_only and source.verdict:
        rows = rows.select([number for number, is_safe in enumerate(rows[source.verdict]) if not is_safe])
    most = limit or source.first or len(rows)
    if not source.even:
        rows = rows.select(range(min(most, len(rows))))
    prompts = list(_prompts(rows, (source.category,), source.label, source.dataset))
    return evenly(prompts, most) if source.even else prompts


def file_rows(path: Path, limit: int | None) -> list[Prompt]:
    """The first rows of a file with the column ``prompt``, and ``category`` or ``categories``, and ``label`` if wanted.

    Raises:
        InputError: if it cannot be read, is empty, or lacks the column.
    """
    rows = load_dataset(str(path))["train"]
    _check_columns(rows, ["prompt"], str(path))
    rows = rows.select(range(min(limit or len(rows), len(rows))))
    categories = [column for column in _CATEGORY_COLUMNS if column in rows.column_names]
    return list(_prompts(rows, categories, "label" if "label" in rows.column_names else None, str(path)))


def task_rows(name: str, limit: int | None) -> tuple[Task, list[Prompt]]:
    """A task of the recipes, and the rows that it is scored on.

    Raises:
        InputError: if there is no such task, or its rows are more than an instruction with a context.
    """
    task = load_task(name, TaskSource(), Most(train=1, test=limit or Task.test_samples))
    rows = task.chosen(max_test=limit)[1]
    for number, row in enumerate(rows, start=1):
        if row.is_chat or row.verbatim:
            chat = "a conversation of several turns" if row.history else "a question with tools"
            what = "a prompt without a chat template" if row.verbatim else chat
            raise InputError(
                f"{name}, row {number} of the test split is {what}, which is not evaluated. "
                "Give rows with 'instruction' + 'output'."
            )
        if not row.instruction.strip():
            raise _empty(name, number)
    return task, [_prompt(row.instruction, row.context, reference=row.response) for row in rows]


def evenly(rows: Sequence[Prompt], limit: int) -> list[Prompt]:
    """``limit`` rows, one of each category in turn until there are enough, in the order they had."""
    places: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.categories, []).append(place)
    turns = itertools.zip_longest(*places.values())
    chosen = [place for turn in turns for place in turn if place is not None][:limit]
    return [rows[place] for place in sorted(chosen)]


def _check_columns(rows: datasets.Dataset, needed: Sequence[str], where: str) -> None:
    missing = [column for column in needed if column not in rows.column_names]
    if missing:
        raise InputError(
            f"{where} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            f"it has {', '.join(rows.column_names) or 'none'}. Rename them."
        )


def _prompts(rows: datasets.Dataset, categories: Sequence[str], label: str | None, where: str) -> Iterator[Prompt]:
    for number, row in enumerate(rows, start=1):
        text = row["prompt"]
        if text is None or not str(text).strip():
            raise _empty(where, number)
        if not isinstance(text, str):
            raise InputError(f"{where}, row {number}: 'prompt' must be a text, found {type(text).__name__}.")
        found = tuple(name for column in categories for name in _categories(row[column], f"{where}, row {number}"))
        said = row[label] or None if label else None
        if said not in (None, *LABELS):
            raise unknown(f"label in {where}, row {number},", str(said), LABELS)
        yield _prompt(text, categories=found, label=said)


def _empty(where: str, number: int) -> InputError:
    return InputError(f"{where}, row {number}: the prompt is empty. Mend the row or leave it out.")


def _prompt(instruction: str, context: str = "", reference: str | None = None, **more: Any) -> Prompt:
    key = content_key(instruction, context, reference)
    return Prompt(key, instruction, context, reference=reference, **more)


def _categories(value: Any, where: str) -> tuple[str, ...]:
    """Of a name, a list of names, or flags by name."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping):
        return tuple(name for name, is_set in value.items() if is_set)
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise InputError(f"{where}: a category must be a text or a list of texts, found {type(value).__name__}.")
