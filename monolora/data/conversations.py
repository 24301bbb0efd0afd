"""Whole conversations in one pass: a conversation's answers as one sequence of tokens.

An answer is an example of its own, whose prompt is all that comes before it. Attention is causal: if one example's
tokens are what the next one of its conversation begins with, a pass over the next one has the losses of both, and
their gradients. That is verified token by token. Where a chat template renders an earlier turn otherwise once more
follow (without its reasoning, for example), its ``{% generation %}`` blocks can say what the answers are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from monolora.data.chat_template import IGNORED, TokenSpan, marked_answers
from monolora.data.example import Example
from monolora.errors import InputError
from monolora.run_record import fingerprint_rows

AUTO, WHOLE, SPLIT = HOW = ("auto", "whole", "split")


class Sequences(NamedTuple):
    """Tokenized rows for training, each with one or more answers of a conversation.

    Attributes:
        rows: with ``input_ids`` and ``labels``.
        members: of each row, the indices of the examples whose answers it has.
        in_parts: origins of the conversations that are divided over several rows.
    """

    rows: datasets.Dataset
    members: list[list[int]]
    in_parts: list[str]

    @property
    def is_joined(self) -> bool:
        """Whether a row has several answers."""
        return any(len(of_row) > 1 for of_row in self.members)

    def fingerprints(self) -> dict[str, str]:
        """Of what is in which row; empty where every example has its own."""
        return {"sequences": fingerprint_rows(map(str, self.members))} if self.is_joined else {}


def sequences(
    examples: Sequence[Example],
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    how: str = AUTO,
    processes: int | None = None,
) -> Sequences:
    """Join the examples of each conversation.

    Args:
        examples: that are trained on.
        rows: these examples tokenized (:func:`monolora.data.chat_template.render_all`).
        tokenizer: that made them.
        how: ``auto`` joins examples that begin with each other, so that losses and gradients stay the same; ``whole``
            joins all of a conversation, and takes the chat template's marks where they do not; ``split`` joins none.
        processes: that share the work.

    Returns:
        The rows as they are where nothing is joined; else in the order of their first examples.

    Raises:
        InputError: with ``whole``, naming a conversation that cannot be joined.
    """
    conversations = _conversations(examples, how)
    if len(conversations) == len(examples):
        return Sequences(rows, conversations, [])
    arrays = rows.with_format("numpy")
    joined: list[tuple[list[int], list[TokenSpan] | None]] = []
    in_parts = []
    for conversation in conversations:
        if len(conversation) == 1:
            joined.append((conversation, None))
            continue
        parts = list(_parts(arrays[conversation]))
        if len(parts) > 1 and how == WHOLE:
            joined.append((conversation, _marked(conversation, examples, tokenizer)))
            continue
        if len(parts) > 1:
            in_parts.append(examples[conversation[0]].origin)
        numbers = iter(conversation)
        joined += [(list(islice(numbers, len(spans))), spans) for spans in parts]
    joined.sort(key=lambda of_row: of_row[0][0])
    members = [part for part, _ in joined]
    if len(members) == len(examples):
        return Sequences(rows, members, in_parts)
    longest = rows.select([of_row[-1] for of_row in members])
    learned = longest.map(
        _with_labels,
        with_indices=True,
        fn_kwargs={"spans": [spans for _, spans in joined]},
        num_proc=processes,
        desc="Joining conversations",
    )
    return Sequences(learned, members, in_parts)


def _conversations(examples: Sequence[Example], how: str) -> list[list[int]]:
    """The examples of each row of a data set, as indices."""
    found: dict[Any, list[int]] = {}
    for number, example in enumerate(examples):
        key = (example.origin, example.group) if example.origin and how != SPLIT else number
        found.setdefault(key, []).append(number)
    return list(found.values())


def _parts(conversation: Mapping[str, Any]) -> Iterator[list[TokenSpan]]:
    """Stretches of a conversation, as long as every example is what the next one's prompt begins with: their answers.

    Args:
        conversation: ``input_ids`` and ``labels`` of its examples, as arrays.
    """
    part: list[TokenSpan] = []
    earlier = np.array([])
    for ids, labels in zip(conversation["input_ids"], conversation["labels"], strict=True):
        answer = TokenSpan(int((labels == IGNORED).sum()), len(ids))  # what follows its prompt
        if part and not np.array_equal(ids[: answer.start][: len(earlier)], earlier):
            yield part
            part = []
        part.append(answer)
        earlier = ids
    yield part


def _marked(
    conversation: Sequence[int], examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
) -> list[TokenSpan]:
    """Where the chat template says that the answers are which are trained on.

    Raises:
        InputError: if it does not say.
    """
    last = examples[conversation[-1]]
    marked = marked_answers(last, tokenizer)
    turns = [_answers_before(examples[number]) for number in conversation]
    if len(marked) != turns[-1] + 1:
        marks = f"marks {len(marked)} of {turns[-1] + 1} answers" if marked else "has no {% generation %} marks"
        raise InputError(
            f"{last.origin}: --conversations whole: the chat template renders an earlier turn otherwise once more "
            f"follow, and {marks}. Give one that marks every answer with --chat-template-path, or leave "
            "--conversations out."
        )
    return [marked[turn] for turn in turns]


def _answers_before(example: Example) -> int:
    return sum(message["role"] == "assistant" for message in example.messages)


def _with_labels(row: Mapping[str, list[int]], number: int, spans: Sequence[list[TokenSpan] | None]) -> dict[str, Any]:
    of_row = spans[number]
    if of_row is None:
        return {"labels": row["labels"]}
    labels = [IGNORED] * len(row["input_ids"])
    for start, stop in of_row:
        labels[start:stop] = row["input_ids"][start:stop]
    return {"labels": labels}
