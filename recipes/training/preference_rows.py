"""Preferences as the rows of TRL's trainers: rendered and tokenized as in supervised finetuning, and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

import datasets
from transformers import PreTrainedTokenizerBase

from monolora.data.chat_template import IGNORED, Split, on_disk, render_all
from monolora.data.preferences import SIDES, Preference
from monolora.errors import InputError
from monolora.recipes.training.data_checks import ALONE_TOO_LONG, Truncation, check_lost

Row = Mapping[str, Any]
IDS = {"chosen": "chosen_ids", "rejected": "rejected_ids"}  # TRL's columns
SAME_OR_TOO_LONG = "have nothing of an answer left, or the same of both, when cut to --max-length {}"


class PreferenceRows(NamedTuple):
    """Tokenized preferences.

    Attributes:
        rows: for the trainer.
        truncation: what a limit of tokens does to them.
        examples: how many there were before it, pairs or answers.
    """

    rows: datasets.Dataset
    truncation: Truncation
    examples: int


def rendered(
    preferences: Sequence[Preference], tokenizer: PreTrainedTokenizerBase, processes: int | None = None
) -> Iterator[tuple[Split | None, Split | None]]:
    """The tokens of each preference's chosen and rejected answer, with what comes before; None where there is none.

    Raises:
        InputError: naming the row that the chat template refuses, or whose prompt it renders otherwise once answered.
    """
    answers = [answer for preference in preferences for answer in preference.answers]
    tokenized = render_all(answers, tokenizer, processes, must_extend=True)
    splits = iter([_split(*columns) for columns in zip(tokenized["input_ids"], tokenized["labels"], strict=True)])
    for preference in preferences:
        chosen, rejected = (next(splits) if example.has_answer else None for example in preference)
        yield chosen, rejected


def _split(ids: list[int], labels: list[int]) -> Split:
    at = next((position for position, label in enumerate(labels) if label != IGNORED), len(ids))
    return Split(ids[:at], ids[at:])


def pair_rows(
    preferences: Sequence[Preference], tokenizer: PreTrainedTokenizerBase, max_length: int | None, processes: int | None
) -> PreferenceRows:
    """Rows for DPO. The prompt ends where the first of the two answers begins, as in TRL.

    A pair is dropped if ``max_length`` leaves nothing of an answer, or the same of both.

    Raises:
        InputError: for a row with one answer, or two that are the same tokens; and as :func:`rendered`.
    """
    for preference in preferences:
        if not preference.is_pair:
            raise InputError(
                f"{preference.chosen.origin}: it has one answer and a label, which --method kto learns from; dpo needs "
                "'chosen' and 'rejected'."
            )
    rows = []
    for preference, (chosen, rejected) in zip(preferences, rendered(preferences, tokenizer, processes), strict=True):
        assert chosen is not None  # as checked above
        assert rejected is not None
        at = min(len(chosen.context), len(rejected.context))
        whole = {side: split.context + split.answer for side, split in zip(SIDES, (chosen, rejected), strict=True)}
        if whole["chosen"] == whole["rejected"]:
            raise InputError(
                f"{preference.chosen.origin}: 'chosen' and 'rejected' are the same tokens once they are rendered. "
                "Leave the row out."
            )
        rows.append({"prompt_ids": whole["chosen"][:at], **{IDS[side]: ids[at:] for side, ids in whole.items()}})
    return _cut(rows, max_length, SAME_OR_TOO_LONG)


def judged_rows(
    preferences: Sequence[Preference],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    processes: int | None,
    seed: int,
) -> PreferenceRows:
    """Rows for KTO: each answer by itself, in an order of the seed, so that the two of a pair are seldom in one batch.

    An answer is dropped if ``max_length`` leaves nothing of it.

    Raises:
        InputError: as :func:`rendered`.
    """
    rows = [
        {"prompt_ids": split.context, "completion_ids": split.answer, "label": side == "chosen"}
        for row in rendered(preferences, tokenizer, processes)
        for side, split in zip(SIDES, row, strict=True)
        if split is not None
    ]
    Random(seed).shuffle(rows)
    return _cut(rows, max_length, ALONE_TOO_LONG)


def _cut(rows: list[dict[str, Any]], max_length: int | None, what: str) -> PreferenceRows:
    """Drop what the limit leaves nothing of; what is longer is cut by TRL when a batch is made.

    Raises:
        InputError: if that is more than half of the rows.
    """
    if max_length is None:
        return PreferenceRows(datasets.Dataset.from_list(rows), Truncation(0, 0), len(rows))
    kept = [row for row in rows if _says_something(row, max_length)]
    truncated = sum(any(len(ids) > max_length for ids, _ in answers_of(row)) for row in kept)
    check_lost(len(rows) - len(kept), len(rows), max_length, what)
    stored = on_disk(datasets.Dataset.from_list(kept))  # TRL shares what it derives from them through their files
    return PreferenceRows(stored, Truncation(len(rows) - len(kept), truncated), len(rows))


def _says_something(row: Row, max_length: int) -> bool:
    cut = [ids[:max_length] for ids, _ in answers_of(row)]
    return len(row["prompt_ids"]) < max_length and (len(cut) == 1 or cut[0] != cut[1])


def answers_of(row: Row) -> Iterator[tuple[list[int], str]]:
    """The token ids of each answer with its prompt, and what it is."""
    prompt = row["prompt_ids"]
    if "label" in row:
        yield prompt + row["completion_ids"], "desirable" if row["label"] else "undesirable"
    else:
        yield from ((prompt + row[IDS[side]], side) for side in SIDES)


def labelled(rows: datasets.Dataset, max_length: int | None) -> Iterator[dict[str, Any]]:
    """Each answer as a row of supervised finetuning: ``input_ids`` and ``labels``, and what it is as ``title``."""
    for number, row in enumerate(rows, start=1):
        for ids, title in answers_of(row):
            at = len(row["prompt_ids"])
            labels = [IGNORED] * at + ids[at:]
            yield {"input_ids": ids[:max_length], "labels": labels[:max_length], "title": f"example {number}, {title}"}
