"""What is in a data set: its format, lengths, duplicates, and how ``monolora sft`` would train on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from monolora.data.chat_template import answer_spans, render_all
from monolora.data.conversations import Sequences, sequences
from monolora.data.datasets import load_dataset
from monolora.data.task import Columns, Source, Task, read_examples
from monolora.data.tasks import BUILT_IN, Example, load_task
from monolora.errors import InputError
from monolora.recipes.training.data_checks import Span, check_training_rows, spans, truncated_by

SHOWN = 3  # examples whose trained tokens are marked


class Lengths(NamedTuple):
    """Quantiles of numbers of tokens, each the length of an example."""

    median: int
    p90: int
    p99: int
    longest: int


class Statistics(NamedTuple):
    """A data set in numbers.

    Attributes:
        name: of the data set.
        columns: and its format; None for a built-in task.
        rows: of the split that is trained on; of a built-in task, its training examples.
        examples: answers in these rows.
        duplicate_examples: how many are, prompt and answer, like an earlier one.
        duplicate_prompts: how many have the prompt of an earlier one; None for texts without a prompt.
        empty_answers: how many have one, which ``sft`` refuses without ``--allow-empty-answers``.
        train: examples that ``sft`` can train on.
        held_out: examples that it would score.
        counts: rows by what becomes of them (:data:`monolora.data.task.COUNTS`).
        tokenized: examples that the following numbers are of, the first that are trained on.
        sequences: that they make, of one or more answers of a conversation.
        in_parts: conversations that are not one sequence.
        tokens: of a sequence.
        answer_tokens: of an answer that is trained on.
        max_length: the limit.
        truncated: examples that lose the end of their answer to it.
        dropped: examples that lose all of it.
        refusal: the reason for which ``sft`` would not train; empty for none.
        shown: the first sequences, cut to the limit, in spans that are trained on or not.
    """

    name: str
    columns: Columns | None
    rows: int
    examples: int
    duplicate_examples: int
    duplicate_prompts: int | None
    empty_answers: int
    train: int
    held_out: int
    counts: dict[str, int]
    tokenized: int
    sequences: int
    in_parts: int
    tokens: Lengths
    answer_tokens: Lengths
    max_length: int
    truncated: int
    dropped: int
    refusal: str
    shown: list[list[Span]]

    @property
    def is_joined(self) -> bool:
        """Whether a sequence has several answers."""
        return self.sequences < self.tokenized

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        parts = {"columns": self.columns, "tokens": self.tokens, "answer_tokens": self.answer_tokens}
        shown = [[span._asdict() for span in example] for example in self.shown]
        return {
            **self._asdict(),
            **{name: part and part._asdict() for name, part in parts.items()},
            "shown": shown,
        }


def statistics(
    name: str,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_samples: int,
    conversations: str,
) -> Statistics:
    """Read a data set and count.

    Args:
        name: as ``--dataset`` takes it.
        source: the part to read; empty answers are counted, not refused.
        tokenizer: with the chat template that applies.
        max_length: limit of an example, in tokens.
        max_samples: examples that are tokenized, at most.
        conversations: how their examples are joined (:func:`monolora.data.conversations.sequences`).

    Raises:
        InputError: where ``sft`` would refuse the data set for its columns or rows.
    """
    if name in BUILT_IN:
        task = load_task(name, source)
        examples, rows = task.train, len(task.train)
    else:
        source = source._replace(allow_empty_answers=True)
        task = load_task(name, source)
        table = load_dataset(name, source.config)[source.train_split]
        examples, rows = read_examples(table, name, source=source), len(table)
    tokenized = task.train[:max_samples]
    made = sequences(tokenized, render_all(tokenized, tokenizer), tokenizer, conversations)
    truncation = truncated_by(made.rows["labels"], max_length)
    cut = datasets.Dataset.from_dict(
        {column: [values[:max_length] for values in made.rows[column]] for column in ("input_ids", "labels")}
    )
    return Statistics(
        name=name,
        columns=task.columns,
        rows=rows,
        examples=len(examples),
        duplicate_examples=_repeated(examples, _content),
        duplicate_prompts=None if examples[0].is_whole_text else _repeated(examples, _prompt),
        empty_answers=sum(example.is_unanswered for example in examples),
        train=len(task.train),
        held_out=len(task.test),
        counts=_counts(task),
        tokenized=len(tokenized),
        sequences=len(made.rows),
        in_parts=len(made.in_parts),
        tokens=_lengths(len(ids) for ids in made.rows["input_ids"]),
        answer_tokens=_lengths(stop - start for labels in made.rows["labels"] for start, stop in answer_spans(labels)),
        max_length=max_length,
        truncated=truncation.truncated,
        dropped=truncation.dropped,
        refusal=_refusal(cut, tokenizer, max_length, truncation.dropped, made),
        shown=[spans(row, tokenizer) for row in cut.select(range(min(SHOWN, len(cut))))],
    )


def _counts(task: Task) -> dict[str, int]:
    return {what: number for what, number in (task.counts or {}).items() if what not in ("data_set", "read")}


def _refusal(
    cut: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, dropped: int, made: Sequences
) -> str:
    """The reason for which the checks of ``sft`` would stop a run on these examples."""
    examples = sum(map(len, made.members))
    if 2 * dropped > examples:
        return f"{dropped} of {examples} prompts alone are longer than --max-length {max_length}."
    try:
        check_training_rows(cut, tokenizer, examples, max_length, joined=made.is_joined)
    except InputError as error:
        return str(error)
    return ""


def _repeated(examples: Sequence[Example], key: Callable[[Example], Hashable]) -> int:
    return len(examples) - len(set(map(key, examples)))


def _content(example: Example) -> str:
    return json.dumps(example[:8], sort_keys=True, default=str)


def _prompt(example: Example) -> str:
    return _content(example._replace(response="", answer=None))


def _lengths(numbers: Iterable[int]) -> Lengths:
    values = np.fromiter(numbers, dtype=np.int64)
    return Lengths(*(int(value) for value in np.quantile(values, (0.5, 0.9, 0.99, 1), method="inverted_cdf")))
