"""Any data set, from the hub, the mirror or a file, in one of the three usual formats.

messages            [{"role": …, "content": …}, …]; every assistant turn becomes an example
prompt, completion  plain text (taken as it is), or messages
instruction         with input/context (optional) and output/response
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import datasets

from monolora.errors import InputError, unknown
from monolora.hub import load_dataset
from monolora.recipes.tasks.base import Example, Task

FORMATS = "'messages', 'prompt' + 'completion', or 'instruction' + 'output' (or 'response')"
HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 1000


class Source(NamedTuple):
    """Where in a data set to look: its configuration and the names of its splits."""

    config: str | None = None
    train_split: str = "train"
    test_split: str = "test"


def load(name: str, source: Source) -> Task:
    """The data set ``name`` as a free-text task.

    Where there is no test split, a fixed shuffle holds out a tenth of the rows, 1,000 at most.

    Raises:
        InputError: if it is not found, has no rows, or has none of the formats.
    """
    splits = load_dataset(name, source.config)
    if source.train_split not in splits:
        raise unknown(f"split of {name}", source.train_split, splits)
    train = read(splits[source.train_split], name)
    if source.test_split in splits:
        return Task(name=name, train=train, test=read(splits[source.test_split], name))
    if len(train) < 2:
        raise InputError(f"{name} has {len(train)} example and no test split; at least 2 are needed to hold one out.")
    Random(0).shuffle(train)
    held_out = max(1, min(HELD_OUT_MOST, int(len(train) * HELD_OUT_SHARE)))
    return Task(name=name, train=train[:-held_out], test=train[-held_out:])


def load_prompts(name: str, source: Source) -> list[Example]:
    """The prompts of one split; a text column ``prompt`` is enough, answers are not needed.

    Raises:
        InputError: if there is no such split, no rows, or none of the formats.
    """
    splits = load_dataset(name, source.config)
    if source.test_split not in splits:
        raise unknown(f"split of {name}", source.test_split, splits)
    rows = splits[source.test_split]
    if "prompt" in rows.column_names and "completion" not in rows.column_names and len(rows) > 0:
        return [Example(prompt, "") for prompt in rows["prompt"]]
    return read(rows, name)


def read(rows: datasets.Dataset, name: str) -> list[Example]:
    """Examples from the rows of one split.

    Raises:
        InputError: if there are no rows, or the columns are of no known format.
    """
    if len(rows) == 0:
        raise InputError(f"The data set {name} is empty.")
    columns = set(rows.column_names)
    if "messages" in columns:
        examples = [example for row in rows for example in _from_messages(row["messages"], name)]
    elif {"prompt", "completion"} <= columns:
        examples = [_from_prompt_completion(row, name) for row in rows]
    elif "instruction" in columns and columns & {"output", "response"}:
        examples = [_from_instruction(row) for row in rows]
    else:
        raise InputError(f"{name} has the columns {', '.join(sorted(columns))}; needed are {FORMATS}. Rename them.")
    if not examples:
        raise InputError(f"The data set {name} has no assistant turn to train on.")
    return examples


def _from_messages(messages: list[dict[str, Any]], name: str) -> Iterator[Example]:
    for index, message in enumerate(messages):
        if set(message) < {"role", "content"}:
            raise InputError(f"{name}: a message needs 'role' and 'content', found {', '.join(sorted(message))}.")
        if message["role"] == "assistant" and index > 0:
            *history, question = messages[:index]
            yield Example(question["content"], message["content"], history=tuple(history))


def _from_prompt_completion(row: dict[str, Any], name: str) -> Example:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return Example(prompt, completion, verbatim=True)
    if isinstance(prompt, list) and isinstance(completion, list) and prompt and completion:
        return next(_from_messages([*prompt, completion[-1]], name))
    raise InputError(f"{name}: 'prompt' and 'completion' must both be texts, or both be lists of messages.")


def _from_instruction(row: dict[str, Any]) -> Example:
    response = row.get("output") or row.get("response") or ""
    return Example(row["instruction"], response, context=row.get("input") or row.get("context") or "")
