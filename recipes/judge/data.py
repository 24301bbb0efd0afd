"""BeaverTails' question-answer rows for a judge, split by prompt.

The prompts that the judge is tested on are those of the first 1,000 rows of ``30k_test``: the very prompts of the
alignment suite. No row with one of them is trained on, whatever split it is in, so a judge never saw a prompt that it
judges later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import datasets

from monolora.beaverdam import LABELS
from monolora.data.datasets import load_dataset
from monolora.errors import InputError, unknown

TRAIN_SPLIT = "30k_train"
HELD_OUT_ROWS = 1000  # of the test split; their prompts are the alignment suite's
COLUMNS = ("prompt", "response", "category", "is_safe")


class Row(NamedTuple):
    """A question, an answer, and people's verdict on the two.

    Attributes:
        prompt: the question.
        response: the answer.
        labels: for each of ``LABELS``, whether the pair has it.
        unsafe: the row's own verdict.
    """

    prompt: str
    response: str
    labels: tuple[bool, ...]
    unsafe: bool


class Splits(NamedTuple):
    """Rows of which no prompt is in two lists.

    Attributes:
        train: training rows.
        validation: rows that select the epoch; may be empty.
        test: rows of the reported results.
    """

    train: list[Row]
    validation: list[Row]
    test: list[Row]


class Data(NamedTuple):
    """Rows, and the splits that they come from.

    Attributes:
        splits: the rows.
        train_splits: names of the data set's splits that are trained on.
    """

    splits: Splits
    train_splits: list[str]


def load(name: str, train_splits: Sequence[str] | None, test_split: str, validation_share: float, seed: int) -> Data:
    """The rows of a data set in BeaverTails' columns.

    Args:
        name: hub id, or a folder in the hub's layout.
        train_splits: trained on, beside what the held-out prompts leave of the test split; None: ``30k_train`` where
            there is one.
        test_split: its first rows name the held-out prompts.
        validation_share: of the other prompts.
        seed: of the draw of validation prompts.

    Raises:
        InputError: if a split, a column or a flag is missing.
    """
    splits = load_dataset(name)
    if train_splits is None:
        train_splits = [TRAIN_SPLIT] if TRAIN_SPLIT in splits else []
    names = list(dict.fromkeys([test_split, *train_splits]))
    for split in names:
        if split not in splits:
            raise unknown(f"split of {name}", split, splits)
    test_rows, *others = (read_rows(splits[split], f"{name}, split {split}") for split in names)
    return Data(split_by_prompt(test_rows, others, validation_share, seed), names)


def read_rows(split: datasets.Dataset, where: str) -> list[Row]:
    """The rows of one split.

    Args:
        split: with the columns ``COLUMNS``; ``category`` holds a flag for each label.
        where: for the error.

    Raises:
        InputError: if a column or a label is missing, or a value is invalid.
    """
    absent = [column for column in COLUMNS if column not in split.column_names]
    if absent:
        raise InputError(
            f"{where}, has no column {absent[0]!r}. A judge is trained on the columns {', '.join(COLUMNS)}."
        )
    return [_row(values, f"{where}, row {index}") for index, values in enumerate(split)]


def _row(values: Mapping[str, Any], where: str) -> Row:
    category = values["category"]
    if not isinstance(category, Mapping) or not set(LABELS) <= category.keys():
        absent = sorted(set(LABELS) - (category.keys() if isinstance(category, Mapping) else set()))
        raise InputError(f"{where}: category has no flag {absent[0]!r}. It needs BeaverTails' {len(LABELS)} flags.")
    for column in ("prompt", "response"):
        if not isinstance(values[column], str):
            raise InputError(f"{where}: {column} is no text.")
    flags = [category[label] for label in LABELS]
    if not all(isinstance(flag, bool) for flag in (*flags, values["is_safe"])):
        raise InputError(f"{where}: is_safe and the flags of category must be true or false.")
    return Row(values["prompt"], values["response"], tuple(flags), not values["is_safe"])


def split_by_prompt(
    test_split: Sequence[Row], others: Sequence[Sequence[Row]], validation_share: float, seed: int
) -> Splits:
    """Split rows by prompt.

    Tested on are all rows of ``test_split`` with a prompt of its first ``HELD_OUT_ROWS`` rows; ``others`` with such a
    prompt are left out. A split of unsafe rows alone is trained on but not validated on: a judge could tell it from
    the rest by its prompts.
    """
    held_out = {prompt_key(row.prompt) for row in test_split[:HELD_OUT_ROWS]}
    splits = Splits([], [], [])
    for split_index, rows in enumerate((test_split, *others)):
        measures = len({row.unsafe for row in rows}) == 2
        for row in rows:
            key = prompt_key(row.prompt)
            if key in held_out:
                if split_index == 0:
                    splits.test.append(row)
            elif _draw(key, seed) >= validation_share:
                splits.train.append(row)
            elif measures:
                splits.validation.append(row)
    return splits


def prompt_key(prompt: str) -> str:
    """The identity of a prompt: its letters and digits, without case."""
    return "".join(filter(str.isalnum, prompt.casefold())) or prompt


def _draw(key: str, seed: int) -> float:
    """A number in [0, 1) from prompt and seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:6], "big") / 2**48


def check_both_kinds(what: str, unsafe: Iterable[bool], too_long: int) -> None:
    """Check that rows are usable for training or measurement.

    Args:
        what: the rows' name.
        unsafe: the verdict of each.
        too_long: number of further rows whose prompt alone is too long.

    Raises:
        InputError: if they are not both safe and unsafe.
    """
    verdicts = list(unsafe)
    if len(set(verdicts)) < 2:
        raise InputError(
            f"There are {len(verdicts)} rows for {what}, not both safe and unsafe ones, and {too_long} more whose "
            "prompt alone is longer than --max-length. Give more rows, or name other splits."
        )
