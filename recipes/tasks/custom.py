"""Any data set, from the hub, the mirror or a file, in one of the three usual formats.

messages            [{"role": …, "content": …}, …]; every assistant turn becomes an example
prompt, completion  plain text (taken as it is), or messages
instruction         with input/context (optional) and output/response

Where no answers are needed (measuring on prompts, calibrating a merge), two more:

prompt              a question without its answer
text                plain text, taken as it is
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, NamedTuple

import datasets

from monolora.errors import InputError, unknown
from monolora.hub import load_dataset
from monolora.recipes.tasks.base import Example, Task

FORMATS = "'messages', 'prompt' + 'completion', or 'instruction' + 'output' (or 'response')"
WITHOUT_ANSWERS = f"{FORMATS}; 'prompt' or 'text' alone will do here"
HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 1000


class Source(NamedTuple):
    """Where in a data set to look: its configuration and the names of its splits."""

    config: str | None = None
    train_split: str = "train"
    test_split: str = "test"


def load(name: str, source: Source, answers: bool = True) -> Task:
    """The data set ``name`` as a free-text task.

    Where there is no test split, a fixed shuffle holds out a tenth of the rows, 1,000 at most.

    Args:
        name: the data set.
        source: where in it to look.
        answers: whether every example must have an answer.

    Raises:
        InputError: if it is not found, has no rows, or has none of the formats.
    """
    splits = load_dataset(name, source.config)
    train = read(_split(splits, source.train_split, name), name, answers)
    if source.test_split in splits:
        return Task(name=name, train=train, test=read(splits[source.test_split], name, answers))
    if source.test_split != Source().test_split:
        raise unknown(f"split of {name}", source.test_split, splits)
    if len(train) < 2:
        raise InputError(f"{name} has {len(train)} example and no test split; at least 2 are needed to hold one out.")
    Random(0).shuffle(train)
    held_out = max(1, min(HELD_OUT_MOST, int(len(train) * HELD_OUT_SHARE)))
    return Task(name=name, train=train[:-held_out], test=train[-held_out:])


def load_prompts(name: str, split: str | None = None) -> list[Example]:
    """The prompts of one split; answers are not needed.

    Args:
        name: the data set.
        split: by default its only one, or ``test`` where there are several.

    Raises:
        InputError: if there is no such split, no rows, or none of the formats.
    """
    return read(prompt_rows(name, split), name, answers=False)


def prompt_rows(name: str, split: str | None = None) -> datasets.Dataset:
    """The rows that :func:`load_prompts` reads, with all their columns.

    Raises:
        InputError: if there is no such data set or split.
    """
    splits = load_dataset(name)
    return _split(splits, split or (next(iter(splits)) if len(splits) == 1 else Source().test_split), name)


def read(rows: datasets.Dataset, name: str, answers: bool = True) -> list[Example]:
    """Examples from the rows of one split; ``answers`` says whether each must have one.

    Raises:
        InputError: if there are no rows, the columns are of no known format, or a row has something else than text.
    """
    columns = set(rows.column_names)
    if "messages" in columns:
        parse = _from_messages
    elif {"prompt", "completion"} <= columns:
        parse = _from_prompt_completion
    elif "instruction" in columns and columns & {"output", "response"}:
        parse = _from_instruction
    elif not answers and "prompt" in columns:
        parse = _from_prompt
    elif not answers and "text" in columns:
        parse = _from_plain_text
    else:
        needed = FORMATS if answers else WITHOUT_ANSWERS
        raise InputError(f"{name} has the columns {', '.join(sorted(columns))}; needed are {needed}. Rename them.")
    filled = enumerate(_filled(rows, name), start=1)
    examples = [example for number, row in filled for example in parse(row, f"{name}, row {number}")]
    if not examples:
        raise InputError(f"The data set {name} has no assistant turn to train on.")
    return examples


def _split(splits: datasets.DatasetDict, wanted: str, name: str) -> datasets.Dataset:
    if wanted not in splits:
        raise unknown(f"split of {name}", wanted, splits)
    return splits[wanted]


def _filled(rows: datasets.Dataset, name: str) -> datasets.Dataset:
    if len(rows) == 0:
        raise InputError(f"The data set {name} is empty.")
    return rows


def _from_messages(row: Mapping[str, Any], where: str) -> Iterator[Example]:
    """One example for every assistant turn."""
    messages = _messages(row, "messages", where)
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and index > 0:
            yield _answered(messages[:index], message, where)


def _from_prompt_completion(row: Mapping[str, Any], where: str) -> Iterator[Example]:
    if isinstance(row["prompt"], list) and isinstance(row["completion"], list):
        answers = _messages(row, "completion", where)
        if len(answers) != 1 or answers[0]["role"] != "assistant":
            raise InputError(f"{where}: 'completion' must be one message, with the role 'assistant'.")
        yield _answered(_messages(row, "prompt", where), answers[0], where)
    elif isinstance(row["prompt"], list) or isinstance(row["completion"], list):
        raise InputError(f"{where}: 'prompt' and 'completion' must both be texts, or both be lists of messages.")
    else:
        completion = _text(row, "completion", where, may_be_empty=True)
        yield Example(_text(row, "prompt", where), completion, verbatim=True)


def _from_prompt(row: Mapping[str, Any], where: str) -> Iterator[Example]:
    yield Example(_text(row, "prompt", where), "")


def _from_plain_text(row: Mapping[str, Any], where: str) -> Iterator[Example]:
    yield Example(_text(row, "text", where), "", verbatim=True)


def _from_instruction(row: Mapping[str, Any], where: str) -> Iterator[Example]:
    answer = "output" if "output" in row else "response"
    context = "input" if "input" in row else "context"
    given = "" if row.get(context) is None else _text(row, context, where, may_be_empty=True)
    yield Example(_text(row, "instruction", where), _text(row, answer, where, may_be_empty=True), context=given)


def _answered(before: list[dict[str, str]], answer: dict[str, str], where: str) -> Example:
    *history, question = before
    if question["role"] != "user":
        raise InputError(f"{where}: an answer must follow a message of the role 'user', found {question['role']!r}.")
    return Example(question["content"], answer["content"], history=tuple(history))


def _messages(row: Mapping[str, Any], column: str, where: str) -> list[dict[str, str]]:
    messages = row[column]
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise InputError(f"{where}: {column!r} must be a list of messages with 'role' and 'content'.")
    for message in messages:
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise InputError(f"{where}: a message needs a text {key!r}, found {_kind(message.get(key))}.")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _text(row: Mapping[str, Any], column: str, where: str, may_be_empty: bool = False) -> str:
    value = row[column]
    if not isinstance(value, str) or not (value or may_be_empty):
        raise InputError(f"{where}: {column!r} must be a text, found {_kind(value)}. Mend the row or leave it out.")
    return value


def _kind(value: object) -> str:
    return "nothing" if value is None or value == "" else f"a value of type {type(value).__name__}"
