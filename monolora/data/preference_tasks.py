"""Preferences by name: the built-in ones, and any data set in a format of :mod:`monolora.data.preferences`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

import datasets

from monolora.data import task
from monolora.data.datasets import load_dataset
from monolora.data.evaluation_prompts import evaluation_prompts
from monolora.data.example import Example
from monolora.data.preferences import Preference, PreferenceFormat, Rewards
from monolora.data.task import HELD_OUT_MOST, HELD_OUT_SHARE, Task
from monolora.errors import InputError, unknown

BEAVERTAILS = "PKU-Alignment/BeaverTails"
TRAIN_SPLIT, TEST_SPLIT = "30k_train", "30k_test"
_COLUMNS = ("prompt", "response", "is_safe")
# What became of BeaverTails' prompts, beside the counts of any data set.
COUNTS = {
    "one_sided_prompts": "prompts left out, without both a safe and an unsafe answer",
    "evaluated_prompts": "prompts left out, which the evaluation asks",
}


def load_preferences(name: str, source: task.Source, limits: task.SampleLimits = task.NO_LIMITS) -> Task[Preference]:
    """Built-in preferences by name, or those of any data set.

    Args:
        name: of either.
        source: where in a data set to look.
        limits: how many rows of a data set are wanted; built-in preferences are read as a whole.

    Raises:
        InputError: if the data set cannot be found, is empty, lacks the columns that are needed, or has a row that is
            not understood.
    """
    if name not in BUILT_IN:
        read = task.dataset_task(name, source._replace(allow_empty_answers=True), True, limits, PreferenceFormat)
        return Task(name=name, train=read.train, test=read.test, scorer=Rewards(), counts=read.counts)
    if source != task.Source():
        raise InputError(
            f"--dataset {name} has its own splits and columns. Leave --dataset-config, --dataset-…-split and "
            "--drop-columns out."
        )
    return BUILT_IN[name]()


class _Answers(NamedTuple):
    """A prompt's answers in BeaverTails."""

    prompt: str
    safe: list[str]
    unsafe: list[str]


def beavertails() -> Task[Preference]:
    """A safe and an unsafe answer to each prompt of BeaverTails' training part that has both, drawn by a fixed seed.

    Of a mirror with a part of the training split, what the evaluation leaves of the test split is read too, as
    ``monolora judge`` does. Prompts that the evaluation asks are left out, by their texts. A tenth is held out.

    Raises:
        InputError: if the data set is unavailable, lacks a column, or has no such prompt.
    """
    splits = load_dataset(BEAVERTAILS)
    names = _split_names(splits)
    by_text: dict[str, _Answers] = {}
    for row in (row for name in names for row in _rows(splits[name], name)):
        text = Example(row["prompt"], "").normalised_prompt
        answers = by_text.setdefault(text, _Answers(row["prompt"], [], []))
        (answers.safe if row["is_safe"] else answers.unsafe).append(row["response"])
    evaluated = by_text.keys() & evaluation_prompts()
    random = Random(0)
    pairs: list[Preference] = []
    for text, answers in by_text.items():
        not_safe = {answer.strip() for answer in answers.unsafe}
        safe = [answer for answer in answers.safe if answer.strip() and answer.strip() not in not_safe]
        unsafe = [answer for answer in answers.unsafe if answer.strip()]
        if safe and unsafe and text not in evaluated:
            origin = f"{BEAVERTAILS}, pair {len(pairs) + 1}"
            sides = (Example(answers.prompt, random.choice(of), origin=origin) for of in (safe, unsafe))
            pairs.append(Preference(*sides))
    if len(pairs) < 2:
        raise InputError(
            f"{BEAVERTAILS}: {len(pairs)} prompts of {', '.join(names)} have both a safe and an unsafe answer; at "
            "least 2 are needed. Take a mirror with more of the data set."
        )
    random.shuffle(pairs)
    held_out = max(1, min(HELD_OUT_MOST, int(len(pairs) * HELD_OUT_SHARE)))
    rows = sum(len(splits[name]) for name in names)
    return Task(
        name="beavertails",
        train=pairs[:-held_out],
        test=pairs[-held_out:],
        scorer=Rewards(),
        counts={
            "data_set": rows,
            "read": rows,
            "one_sided_prompts": len(by_text) - len(pairs) - len(evaluated),
            "evaluated_prompts": len(evaluated),
        },
    )


def _split_names(splits: datasets.DatasetDict) -> list[str]:
    """The training split; else its parts, and the test split beside them."""
    if TRAIN_SPLIT in splits:
        return [TRAIN_SPLIT]
    names = [name for name in splits if name.startswith(f"{TRAIN_SPLIT}_") or name == TEST_SPLIT]
    if not names:
        raise unknown(f"split of {BEAVERTAILS}", TRAIN_SPLIT, splits)
    return names


def _rows(split: datasets.Dataset, name: str) -> Iterator[dict[str, Any]]:
    """Raises: InputError, for a column that is missing or a value that is not understood."""
    absent = [column for column in _COLUMNS if column not in split.column_names]
    if absent:
        raise InputError(f"{BEAVERTAILS}, split {name}, has no column {absent[0]!r}; needed are {', '.join(_COLUMNS)}.")
    for number, row in enumerate(split.select_columns(list(_COLUMNS)), start=1):
        texts = isinstance(row["prompt"], str) and isinstance(row["response"], str)
        if not texts or not isinstance(row["is_safe"], bool):
            raise InputError(
                f"{BEAVERTAILS}, split {name}, row {number}: prompt and response must be texts, and is_safe true or "
                "false."
            )
        yield row


BUILT_IN: dict[str, Callable[[], Task[Preference]]] = {"beavertails": beavertails}
