"""Any data set, from the hub, the mirror or a file, in one of the usual formats.

messages            [{"role": …, "content": …}, …], or ``conversations`` with ``from`` and ``value``; every assistant
                    turn becomes an example, unless its ``weight`` is 0 or its ``train`` false
prompt, completion  plain text (taken as it is), or messages
instruction         with input/context, system and history (optional) and output/response

Beside messages: ``system``, ``tools``, ``documents`` and ``chat_template_kwargs``, handed to the chat template.

Where no answers are needed (measuring on prompts, calibrating a merge), two more:

prompt              a question without its answer; a text, or messages
text                plain text, taken as it is

Nothing that shapes a row's text is passed over: what is not understood is refused by its column and row.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from random import Random
from typing import Any, NamedTuple

import datasets
from transformers import PreTrainedTokenizerBase

from monolora.data.messages import SHAPING, Turn, is_empty, is_plain, kind, pairs, parsed, text_of, turns, without_none
from monolora.data.task import Example, Task
from monolora.errors import InputError, unknown
from monolora.hub import load_dataset

FORMATS = "'messages', 'prompt' + 'completion', or 'instruction' + 'output' (or 'response')"
WITHOUT_ANSWERS = f"{FORMATS}; 'prompt' or 'text' alone will do here"
# What is counted of the rows that are read for training.
COUNTS = {
    "read": "rows read",
    "untrained_rows": "rows without a trained turn",
    "held_out_questions": "rows left out, with the question of a held-out row",
    "untrained_turns": "answers that are only context",
    "unanswered_turns": "messages after the last answer",
}
HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 1000

_CHAT = ("messages", "conversations", "conversation")
_OF_CHATS = frozenset({"system", "tools", "documents", "chat_template_kwargs"})
_AT_A_TIME = 1000  # rows
_CHECKED_WHOLE = 20_000  # rows that are all read, however few are trained on
# What the recipe says itself when it renders a conversation.
_RESERVED = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters.keys() | {"messages"}


class Source(NamedTuple):
    """Where in a data set to look, and what of it to leave.

    Attributes:
        config: its configuration.
        train_split, test_split: names of its splits.
        drop_columns: columns that are not looked at.
        allow_empty_answers: whether an answer may be empty.
    """

    config: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    drop_columns: tuple[str, ...] = ()
    allow_empty_answers: bool = False


class Most(NamedTuple):
    """How many examples are wanted, so that no more rows are read; None for all."""

    train: int | None = None
    validation: int = 0
    test: int | None = None


def load(name: str, source: Source, answers: bool = True, most: Most = Most()) -> Task:  # noqa: B008 (never changed)
    """The data set ``name`` as a free-text task.

    Where there is no test split, a fixed shuffle holds out a tenth of the rows, 1,000 at most: whole conversations.
    Rows that begin with the question of a held-out row are not trained on, unless nearly all do.

    Args:
        name: the data set.
        source: where in it to look.
        answers: whether every example must have an answer.
        most: how many examples are wanted.

    Raises:
        InputError: if it is not found, has no rows, has none of the formats, or a row is not understood.
    """
    splits = load_dataset(name, source.config)
    rows = _Rows(_split(splits, source.train_split, name), name, source, answers)
    order = list(range(len(rows.table)))
    if len(order) <= _CHECKED_WHOLE:
        for _ in rows.each(order):  # so that the first bad row is named, trained on or not
            pass
    if source.test_split in splits:
        held_out = _Rows(splits[source.test_split], name, source, answers)
        test = held_out.examples(range(len(held_out.table)), most.test)
        groups: set[str] = set()
    elif source.test_split != Source().test_split:
        raise unknown(f"split of {name}", source.test_split, splits)
    elif len(order) < 2:
        raise InputError(f"{name} has {len(order)} example and no test split; at least 2 are needed to hold one out.")
    else:
        Random(0).shuffle(order)
        number = max(1, min(HELD_OUT_MOST, int(len(order) * HELD_OUT_SHARE)))
        order, numbers = order[:-number], order[-number:]
        test = rows.examples(numbers, None)
        groups = {example.group for example in test}
    rows.counts.clear()  # what is counted is what is trained on
    train = rows.training(order, groups, most)
    if not train:
        raise InputError(f"The data set {name} has no assistant turn to train on.")
    counts = {what: rows.counts[what] for what in COUNTS}
    return Task(name=name, train=train, test=test, counts={"data_set": len(rows.table), **counts})


def load_prompts(name: str, split: str | None = None, most: int | None = None) -> list[Example]:
    """The prompts of one split; answers are not needed.

    Args:
        name: the data set.
        split: by default its only one, or ``test`` where there are several.
        most: how many, at most.

    Raises:
        InputError: if there is no such split, no rows, or none of the formats.
    """
    rows = prompt_rows(name, split)
    return _Rows(rows, name, Source(), answers=False).examples(range(len(rows)), most)


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
        InputError: if there are no rows, the columns are of no known format, or a row is not understood.
    """
    return _Rows(rows, name, Source(), answers).examples(range(len(rows)), None)


def _split(splits: datasets.DatasetDict, wanted: str, name: str) -> datasets.Dataset:
    if wanted not in splits:
        raise unknown(f"split of {name}", wanted, splits)
    return splits[wanted]


class _Rows:
    """The rows of one split, read as they are asked for.

    ``counts`` says what became of those that were.
    """

    def __init__(self, table: datasets.Dataset, name: str, source: Source, answers: bool) -> None:
        if len(table) == 0:
            raise InputError(f"The data set {name} is empty.")
        absent = [column for column in source.drop_columns if column not in table.column_names]
        if absent:
            raise unknown("column of --drop-columns", absent[0], table.column_names)
        self.name, self.answers = name, answers
        self.allow_empty = source.allow_empty_answers or not answers
        columns = [column for column in table.column_names if column not in source.drop_columns]
        self.parse, known = self._format(columns)
        self.strange = [column for column in columns if column not in known and column.lower() in SHAPING]
        for column in self.strange:
            if found := re.search(r"\b(Image|Audio|Video)\(", repr(table.features[column])):
                raise self._not_understood(column, f"holds {found.group(1).lower()}s")
        self.structs = [
            column for column in known if not isinstance(table.features[column], datasets.Json | datasets.Value)
        ]
        self.table = table.select_columns([*known, *self.strange])
        self.counts: Counter[str] = Counter()

    def _format(self, columns: Sequence[str]) -> tuple[Callable[..., Iterator[Example]], list[str]]:
        """How a row is read, and from which columns."""
        has = set(columns)
        chats = [column for column in _CHAT if column in has]
        complete: list[tuple[Callable[..., Iterator[Example]], set[str]]] = [
            (self._from_chat, {column, *_OF_CHATS}) for column in chats
        ]
        if {"prompt", "completion"} <= has:
            complete.append((self._from_prompt_completion, {"prompt", "completion", *_OF_CHATS}))
        if "instruction" in has and has & {"output", "response"}:
            names = {"instruction", "input", "context", "output", "response", "history", *_OF_CHATS}
            complete.append((self._from_instruction, names))
        if not complete and not self.answers and "prompt" in has:
            complete.append((self._from_prompt, {"prompt", *_OF_CHATS}))
        if not complete and not self.answers and "text" in has:
            complete.append((self._from_plain_text, {"text"}))
        if not complete:
            needed = FORMATS if self.answers else WITHOUT_ANSWERS
            raise InputError(
                f"{self.name} has the columns {', '.join(sorted(columns))}; needed are {needed}. Rename them."
            )
        if len(complete) > 1:
            first, second = (sorted(names & has - _OF_CHATS) for _, names in complete[:2])
            raise InputError(
                f"{self.name} holds two formats, {' + '.join(first)} and {' + '.join(second)}. Leave one out with "
                f"--drop-columns {' '.join(second)}."
            )
        parse, names = complete[0]
        return parse, [column for column in columns if column in names]

    def examples(self, numbers: Sequence[int], most: int | None) -> list[Example]:
        """Those of the rows of these numbers, in their order, until there are enough.

        Raises:
            InputError: if there are none.
        """
        found: list[Example] = []
        for row in self.each(numbers):
            found += row
            if most is not None and len(found) >= most:
                return found[:most]
        if not found:
            raise InputError(f"The data set {self.name} has no assistant turn to train on.")
        return found

    def training(self, order: Sequence[int], held_out: set[str], most: Most) -> list[Example]:
        """The first examples of these rows and, for validation, the last ones."""
        first, taken = self._apart(order, held_out, most.train)
        left_out = self.counts["held_out_questions"]
        if held_out and (
            not first or (self.answers and left_out > taken / 2)
        ):  # they begin alike, and differ by their number alone
            if first:
                warnings.warn(
                    f"{left_out} of {taken} rows of {self.name} begin with the question of a held-out row, so held-out "
                    "questions are trained on too. Give it a test split to keep them apart.",
                    stacklevel=2,
                )
            held_out = set()
            self.counts.clear()
            first, taken = self._apart(order, held_out, most.train)
        elif self.answers and left_out > taken / 100:
            warnings.warn(
                f"{left_out} of {taken} rows of {self.name} are not trained on: they begin with the question of a "
                "held-out row. Give it a test split to decide what is held out.",
                stacklevel=2,
            )
        trained = {example.group for example in first[: most.train]}
        last: list[Example] = []
        for row in self.each(order[taken:][::-1]) if most.validation else ():
            if row and row[0].group not in held_out | trained:
                last = row + last
            if len(last) >= most.validation:
                break
        return first + last

    def _apart(self, order: Sequence[int], held_out: set[str], most: int | None) -> tuple[list[Example], int]:
        """Examples of rows that begin otherwise than the held-out ones, and how many rows it took.

        Where not one is found among many, there are none, for all that matters: a data set may be one row, repeated.
        """
        found: list[Example] = []
        enough = len(order) if most is None else most + HELD_OUT_MOST
        taken = 0
        for taken, row in enumerate(self.each(order), start=1):
            if row and row[0].group in held_out:
                self.counts["held_out_questions"] += 1
                if not found and taken >= enough:
                    break
                continue
            found += row
            if most is not None and len(found) >= most:
                break
        return found, taken

    def each(self, numbers: Sequence[int]) -> Iterator[list[Example]]:
        """The examples of each row; the rows in batches, each as soon as it is needed."""
        for start in range(0, len(numbers), _AT_A_TIME):
            batch = numbers[start : start + _AT_A_TIME]
            cells = self.table.select(batch)[:]
            for column in self.structs:
                cells[column] = list(map(without_none, cells[column]))
            for number, *values in zip(batch, *cells.values(), strict=True):
                self.counts["read"] += 1
                yield self._row(dict(zip(cells, values, strict=True)), f"{self.name}, row {number + 1}")

    def _row(self, row: Mapping[str, Any], where: str) -> list[Example]:
        for column in self.strange:
            if not is_empty(parsed(row[column])):
                raise self._not_understood(column, f"is not understood in {where.removeprefix(self.name + ', ')}")
        found = [example._replace(origin=where) for example in self.parse(row, where)]
        if not found:
            self.counts["untrained_rows"] += 1
            return []
        if not self.allow_empty:
            for example in found:
                if not (example.response.strip() or (example.answer or {}).get("tool_calls")):
                    raise InputError(
                        f"{where}: the answer is empty. Leave the row out, or train on empty answers too with "
                        "--allow-empty-answers."
                    )
        group = _beginning(found[0])
        return [example._replace(group=group) for example in found]

    def _not_understood(self, column: str, what: str) -> InputError:
        return InputError(
            f"{self.name}: the column {column!r} {what}, and might belong to what the model reads. Rename it or put it "
            f"into the messages, or leave it out (monolora sft: --drop-columns {column})."
        )

    def _from_chat(self, row: Mapping[str, Any], where: str) -> Iterator[Example]:
        """One example for every assistant turn that is trained on."""
        column = next(name for name in _CHAT if name in row)
        said = [*_system(row, where), *turns(row[column], column, where)]
        if said[0].message["role"] == "system" and any(turn.message["role"] == "system" for turn in said[1:2]):
            if said[0].message != said[1].message:
                raise InputError(f"{where}: 'system' and the first message are two system messages. Keep one of them.")
            said = said[1:]
        yield from self._answers(said, _shared(row, where), where)

    def _answers(self, said: Sequence[Turn], shared: Mapping[str, Any], where: str) -> Iterator[Example]:
        messages = [turn.message for turn in said]
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            if self.answers:
                raise InputError(f"{where} has no assistant turn to train on. Leave the row out.")
            yield _example(messages, None, shared)
        for index in answers:
            if said[index].is_trained is False or (index == 0 and not said[index].is_trained):
                self.counts["untrained_turns"] += 1
                continue
            _check_answers(messages[:index], where)
            yield _example(messages[:index], messages[index], shared)
        self.counts["unanswered_turns"] += len(messages) - 1 - answers[-1] if answers else 0

    def _from_prompt_completion(self, row: Mapping[str, Any], where: str) -> Iterator[Example]:
        prompt, completion = parsed_messages(row["prompt"]), parsed_messages(row["completion"])
        if isinstance(prompt, list) and isinstance(completion, list):
            answers = turns(completion, "completion", where)
            if len(answers) != 1 or answers[0].message["role"] != "assistant":
                raise InputError(
                    f"{where}: 'completion' must be one message, with the role 'assistant'. Write longer ones as "
                    "'messages'."
                )
            said = [turn.message for turn in (*_system(row, where), *turns(prompt, "prompt", where))]
            _check_answers(said, where)
            yield _example(said, answers[0].message, _shared(row, where))
        elif isinstance(prompt, list) or isinstance(completion, list):
            raise InputError(f"{where}: 'prompt' and 'completion' must both be texts, or both be lists of messages.")
        else:
            self._only_texts(row, where)
            yield Example(
                _text(row, "prompt", where), _text(row, "completion", where, may_be_empty=True), verbatim=True
            )

    def _from_prompt(self, row: Mapping[str, Any], where: str) -> Iterator[Example]:
        prompt = parsed_messages(row["prompt"])
        if isinstance(prompt, list):
            said = [turn.message for turn in (*_system(row, where), *turns(prompt, "prompt", where))]
            yield _example(said, None, _shared(row, where))
        else:
            said = [turn.message for turn in _system(row, where)]
            yield Example(_text(row, "prompt", where), "", history=tuple(said), **_shared(row, where))

    def _from_plain_text(self, row: Mapping[str, Any], where: str) -> Iterator[Example]:
        yield Example(_text(row, "text", where), "", verbatim=True)

    def _from_instruction(self, row: Mapping[str, Any], where: str) -> Iterator[Example]:
        answer, context = _one_of(row, ("output", "response"), where), _one_of(row, ("input", "context"), where)
        question = _text(row, "instruction", where)
        given = "" if context is None or row[context] is None else _text(row, context, where, may_be_empty=True)
        response = _text(row, answer or "output", where, may_be_empty=True)
        said = [
            *_system(row, where),
            *(pairs(row["history"], where) if not is_empty(parsed(row.get("history"))) else ()),
        ]
        shared = _shared(row, where)
        yield from self._answers(said, shared, where) if any(t.message["role"] == "assistant" for t in said) else ()
        yield Example(question, response, context=given, history=tuple(turn.message for turn in said), **shared)

    def _only_texts(self, row: Mapping[str, Any], where: str) -> None:
        for column in _OF_CHATS:
            if not is_empty(parsed(row.get(column))):
                raise InputError(
                    f"{where}: {column!r} belongs to conversations; 'prompt' and 'completion' are plain texts here. "
                    f"Write them as messages, or leave it out (monolora sft: --drop-columns {column})."
                )


def parsed_messages(value: Any) -> Any:
    """Messages from JSON in a text; a text that only looks like JSON stays one."""
    found = parsed(value)
    is_messages = isinstance(found, list) and found and all(isinstance(each, dict) and "role" in each for each in found)
    return found if is_messages or not isinstance(value, str) else value


def _check_answers(before: Sequence[Mapping[str, Any]], where: str) -> None:
    """Check that an answer may follow these messages."""
    role = before[-1]["role"] if before else "nothing"
    if role not in ("user", "tool"):
        raise InputError(
            f"{where}: an answer must follow a message of the role 'user', found {role!r}; the result of a tool "
            "will do too. Correct the row, or give the answer the weight 0."
        )


def _example(messages: Sequence[dict[str, Any]], answer: dict[str, Any] | None, shared: Mapping[str, Any]) -> Example:
    """Of the messages before an answer, and the answer."""
    *history, question = messages
    is_text = is_plain(question) and question["role"] == "user" and question["content"]
    return Example(
        question["content"] if is_text else "",
        "" if answer is None else text_of(answer),
        history=tuple(history if is_text else messages),
        answer=None if answer is None or is_plain(answer) else answer,
        **shared,
    )


def _shared(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the chat template is given beside the messages."""
    tools, kwargs = parsed(row.get("tools")), parsed(row.get("chat_template_kwargs"))
    documents = parsed(row.get("documents"))
    for column, value in (("tools", tools), ("documents", documents)):
        if not is_empty(value) and not (isinstance(value, list) and all(isinstance(each, Mapping) for each in value)):
            raise InputError(f"{where}: {column!r} must be a list of objects, found {kind(value)}.")
    if not is_empty(kwargs) and not isinstance(kwargs, Mapping):
        raise InputError(f"{where}: 'chat_template_kwargs' must be an object, found {kind(kwargs)}.")
    named = {**(kwargs or {}), **({"documents": documents} if documents else {})}
    taken = sorted(_RESERVED - {"documents"} & named.keys())
    if taken:
        raise InputError(f"{where}: 'chat_template_kwargs' may not have {taken[0]!r}, which the recipe says itself.")
    return {"tools": tools or None, "template_kwargs": named or None}


def _system(row: Mapping[str, Any], where: str) -> list[Turn]:
    value = row.get("system")
    if is_empty(value):
        return []
    return [Turn({"role": "system", "content": _text(row, "system", where)}, None)]


def _beginning(example: Example) -> str:
    """A hash of what comes before a row's first answer."""
    if example.verbatim:
        said: Any = example.instruction
    else:
        said = list(takewhile(lambda message: message["role"] != "assistant", example.messages)) or example.messages
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=8).hexdigest()


def _one_of(row: Mapping[str, Any], columns: Iterable[str], where: str) -> str | None:
    """The column of several with one meaning that says something; the first there is where none does."""
    there = [column for column in columns if column in row]
    filled = [column for column in there if not is_empty(row[column])]
    if len({row[column] for column in filled}) > 1:
        raise InputError(
            f"{where}: {' and '.join(map(repr, filled))} both say something. Keep one, or leave one out with "
            f"--drop-columns {filled[1]}."
        )
    return next(iter(filled or there), None)


def _text(row: Mapping[str, Any], column: str, where: str, may_be_empty: bool = False) -> str:
    value = row[column]
    if not isinstance(value, str) or not (value or may_be_empty):
        raise InputError(f"{where}: {column!r} must be a text, found {kind(value)}. Fix the row or leave it out.")
    return value
