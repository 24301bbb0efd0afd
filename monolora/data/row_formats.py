"""How a row of a data set becomes examples, in one of the usual formats.

messages            [{"role": …, "content": …}, …], or ``conversations`` with ``from`` and ``value``; every assistant
                    turn becomes an example, unless its ``weight`` is 0 or its ``train`` false
prompt, completion  plain text (taken as it is), or messages
instruction         with input/context, system and history (optional) and output/response
question, answer    with context and system (optional)
text                plain text: all of it is trained on, as in pretraining

Beside messages: ``system``, ``tools``, ``documents`` and ``chat_template_kwargs``, handed to the chat template.

Where no answers are needed (measuring on prompts, calibrating a merge), one more, and ``text`` is a prompt:

prompt              a question without its answer; a text, or messages

An unsupported column that would shape a row's text is an error that names column and row, never ignored.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from monolora.data.example import (
    SHAPING,
    Example,
    Turn,
    is_empty,
    is_plain,
    kind,
    pairs,
    parsed,
    text_of,
    turns,
    without_none,
)
from monolora.errors import InputError, unknown

FORMATS = (
    "'messages', 'prompt' + 'completion', 'instruction' + 'output' (or 'response'), 'question' + 'answer', or 'text'"
)
WITHOUT_ANSWERS = f"{FORMATS}; 'prompt' alone will do here"

_OUTPUTS = ("output", "response")
_CHAT = ("messages", "conversations", "conversation")
# Columns that make another format of what they stand beside: a question or an answer to a text, the choices of a
# question.
_BESIDE_TEXT = frozenset(
    {
        "label", "labels", "target", "targets", "output", "response", "answer", "answers", "completion", "summary",
        "prompt", "question", "instruction", "query", "chosen", "rejected",
    }
)  # fmt: skip
_BESIDE_QUESTION = frozenset({"choices", "options", "answers", "output", "response", "instruction"})
OF_CHATS = frozenset({"system", "tools", "documents", "chat_template_kwargs"})
# Arguments of the template's call that a row may not set.
_RESERVED = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters.keys() | {"messages"}


Parse = Callable[..., Iterator[Example]]


class RowFormat:
    """The format of a data set's rows, by their columns.

    Args:
        name: of the data set, for errors.
        features: of its columns.
        drop_columns: those that are not read.
        answers: whether every example must have an answer.
        allow_empty: whether an answer may be empty.

    Attributes:
        title: the format, by the names of its columns.
        columns: those that are read.
        counts: skipped rows and turns so far, by reason.

    Raises:
        InputError: if the columns are of no known format, or of two.
    """

    def __init__(
        self, name: str, features: datasets.Features, drop_columns: Sequence[str], answers: bool, allow_empty: bool
    ) -> None:
        absent = [column for column in drop_columns if column not in features]
        if absent:
            raise unknown("column of --drop-columns", absent[0], list(features))
        self.name, self.answers, self.allow_empty = name, answers, allow_empty
        columns = [column for column in features if column not in drop_columns]
        self.title, self.parse, known, beside = self._format(columns)
        shaping = SHAPING | beside
        self.strange = [column for column in columns if column not in known and column.lower() in shaping]
        for column in self.strange:
            if media := re.search(r"\b(Image|Audio|Video)\(", repr(features[column])):
                raise self._not_understood(column, f"holds {media.group(1).lower()}s")
        self._structs = [column for column in known if not isinstance(features[column], datasets.Json | datasets.Value)]
        self.columns = [*known, *self.strange]
        self.counts: Counter[str] = Counter()

    def cleaned(self, cells: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Columns of cells without the keys that Arrow filled into structs."""
        return cells | {column: list(map(without_none, cells[column])) for column in self._structs}

    def examples(self, row: Mapping[str, Any], where: str) -> list[Example]:
        """The examples of a row: one for each answer that is trained on.

        Args:
            row: its cells by column.
            where: data set and row, for errors.

        Raises:
            InputError: naming what in the row is not understood.
        """
        for column in self.strange:
            if not is_empty(parsed(row[column])):
                raise self._not_understood(column, f"is not understood in {where.removeprefix(self.name + ', ')}")
        examples = [example._replace(origin=where) for example in self.parse(row, where)]
        if not examples:
            self.counts["untrained_rows"] += 1
            return []
        if not self.allow_empty:
            for example in examples:
                if example.is_unanswered:
                    raise InputError(
                        f"{where}: the answer is empty. Leave the row out, or train on empty answers too with "
                        "--allow-empty-answers."
                    )
        group = beginning(examples[0])
        return [example._replace(group=group) for example in examples]

    def read(self, row: Mapping[str, Any], where: str) -> list[Any]:
        """What a row is read as; a subclass may make something else of its examples."""
        return self.examples(row, where)

    def _format(self, columns: Sequence[str]) -> tuple[str, Parse, list[str], frozenset[str]]:
        """The format's title, how a row is read, from which columns, and which further ones would be another format."""
        has = set(columns)
        complete: list[tuple[str, Parse, set[str], frozenset[str]]] = [
            (column, self._from_chat, {column, *OF_CHATS}, frozenset()) for column in _CHAT if column in has
        ]
        if {"prompt", "completion"} <= has:
            names = {"prompt", "completion", *OF_CHATS}
            complete.append(("prompt + completion", self.from_prompt_completion, names, frozenset()))
        if "instruction" in has and has.intersection(_OUTPUTS):
            names = {"instruction", "input", "context", "output", "response", "history", *OF_CHATS}
            answer = "output" if "output" in has else "response"
            complete.append((f"instruction + {answer}", self._from_instruction, names, frozenset()))
        if {"question", "answer"} <= has:
            names = {"question", "answer", "context", *OF_CHATS}
            parse = partial(self._from_instruction, asks="question", answers=("answer",))
            complete.append(("question + answer", parse, names, _BESIDE_QUESTION))
        if not complete and not self.answers and "prompt" in has:
            complete.append(("prompt", self._from_prompt, {"prompt", *OF_CHATS}, frozenset()))
        if not complete and "text" in has:  # a conversation often comes with a text that was made of it
            beside = _BESIDE_TEXT if self.answers else frozenset()
            complete.append(("text", self._from_plain_text, {"text"}, beside))
        if not complete:
            needed = FORMATS if self.answers else WITHOUT_ANSWERS
            raise InputError(
                f"{self.name} has the columns {', '.join(sorted(columns))}; needed are {needed}. Rename them."
            )
        if len(complete) > 1:
            first, second = (sorted(names & has - OF_CHATS) for _, _, names, _ in complete[:2])
            raise InputError(
                f"{self.name} holds two formats, {' + '.join(first)} and {' + '.join(second)}. Leave one out with "
                f"--drop-columns {' '.join(second)}."
            )
        title, parse_row, names, beside = complete[0]
        return title, parse_row, [column for column in columns if column in names], beside

    def _not_understood(self, column: str, what: str) -> InputError:
        return InputError(
            f"{self.name}: the column {column!r} {what}, and might belong to what the model reads. Rename it or put it "
            f"into the messages, or leave it out (sft, dpo, data: --drop-columns {column})."
        )

    def _from_chat(self, row: Mapping[str, Any], where: str) -> Iterator[Example]:
        """One example for every assistant turn that is trained on."""
        column = next(name for name in _CHAT if name in row)
        conversation = [*_system(row, where), *turns(row[column], column, where)]
        if all(turn.message["role"] == "system" for turn in conversation[:2]) and len(conversation) > 1:
            if conversation[0].message != conversation[1].message:
                raise InputError(f"{where}: 'system' and the first message are two system messages. Keep one of them.")
            conversation = conversation[1:]
        yield from self._answers(conversation, _shared(row, where), where)

    def _answers(self, conversation: Sequence[Turn], shared: Mapping[str, Any], where: str) -> Iterator[Example]:
        messages = [turn.message for turn in conversation]
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            if self.answers:
                raise InputError(f"{where} has no assistant turn to train on. Leave the row out.")
            yield _example(messages, None, shared)
        for index in answers:
            if conversation[index].is_trained is False or (index == 0 and not conversation[index].is_trained):
                self.counts["untrained_turns"] += 1
                continue
            _check_answers(messages[:index], where)
            yield _example(messages[:index], messages[index], shared)
        self.counts["unanswered_turns"] += len(messages) - 1 - answers[-1] if answers else 0

    def from_prompt_completion(
        self, row: Mapping[str, Any], where: str, column: str = "completion"
    ) -> Iterator[Example]:
        """The example of a prompt and the answer in ``column``.

        Raises:
            InputError: naming what in the row is not understood.
        """
        prompt, completion = parsed_messages(row["prompt"]), parsed_messages(row[column])
        if isinstance(prompt, list) and isinstance(completion, list):
            answers = turns(completion, column, where)
            if len(answers) != 1 or answers[0].message["role"] != "assistant":
                raise InputError(self._not_one_answer(column, where))
            messages = [turn.message for turn in (*_system(row, where), *turns(prompt, "prompt", where))]
            _check_answers(messages, where)
            yield _example(messages, answers[0].message, _shared(row, where))
        elif isinstance(prompt, list) or isinstance(completion, list):
            raise InputError(f"{where}: 'prompt' and {column!r} must both be texts, or both be lists of messages.")
        else:
            self._only_texts(row, where, column)
            yield Example(_text(row, "prompt", where), _text(row, column, where, may_be_empty=True), verbatim=True)

    def _not_one_answer(self, column: str, where: str) -> str:
        return f"{where}: {column!r} must be one message, with the role 'assistant'. Write longer ones as 'messages'."

    def _from_prompt(self, row: Mapping[str, Any], where: str) -> Iterator[Example]:
        prompt = parsed_messages(row["prompt"])
        if isinstance(prompt, list):
            messages = [turn.message for turn in (*_system(row, where), *turns(prompt, "prompt", where))]
            yield _example(messages, None, _shared(row, where))
        else:
            history = tuple(turn.message for turn in _system(row, where))
            yield Example(_text(row, "prompt", where), "", history=history, **_shared(row, where))

    def _from_plain_text(self, row: Mapping[str, Any], where: str) -> Iterator[Example]:
        text = _text(row, "text", where)
        yield Example("", text, verbatim=True) if self.answers else Example(text, "", verbatim=True)

    def _from_instruction(
        self, row: Mapping[str, Any], where: str, asks: str = "instruction", answers: Sequence[str] = _OUTPUTS
    ) -> Iterator[Example]:
        answer, context = _one_of(row, answers, where), _one_of(row, ("input", "context"), where)
        question = _text(row, asks, where)
        text = "" if context is None or row[context] is None else _text(row, context, where, may_be_empty=True)
        response = _text(row, answer or answers[0], where, may_be_empty=True)
        has_history = not is_empty(parsed(row.get("history")))
        history = [*_system(row, where), *(pairs(row["history"], where) if has_history else ())]
        shared = _shared(row, where)
        if any(turn.message["role"] == "assistant" for turn in history):
            yield from self._answers(history, shared, where)
        yield Example(question, response, context=text, history=tuple(turn.message for turn in history), **shared)

    def _only_texts(self, row: Mapping[str, Any], where: str, column_of_answer: str) -> None:
        for column in OF_CHATS:
            if not is_empty(parsed(row.get(column))):
                raise InputError(
                    f"{where}: {column!r} belongs to conversations; 'prompt' and {column_of_answer!r} are plain texts "
                    f"here. Write them as messages, or leave it out (sft, dpo, data: --drop-columns {column})."
                )


def parsed_messages(value: Any) -> Any:
    """Messages from JSON in a text; a text that only looks like JSON stays one."""
    messages = parsed(value)
    is_messages = (
        isinstance(messages, list)
        and messages
        and all(isinstance(message, dict) and "role" in message for message in messages)
    )
    return messages if is_messages or not isinstance(value, str) else value


def _check_answers(before: Sequence[Mapping[str, Any]], where: str) -> None:
    """Check that an answer may follow these messages."""
    role = before[-1]["role"] if before else "nothing"
    if role not in ("user", "tool"):
        raise InputError(
            f"{where}: an answer must follow a message of the role 'user', found {role!r}; the result of a tool "
            "will do too. Correct the row, or give the answer the weight 0."
        )


def _example(messages: Sequence[dict[str, Any]], answer: dict[str, Any] | None, shared: Mapping[str, Any]) -> Example:
    """The example of an answer and the messages before it."""
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
    """Arguments of the chat template besides the messages."""
    tools, kwargs = parsed(row.get("tools")), parsed(row.get("chat_template_kwargs"))
    documents = parsed(row.get("documents"))
    for column, value in (("tools", tools), ("documents", documents)):
        if not is_empty(value) and not (isinstance(value, list) and all(isinstance(item, Mapping) for item in value)):
            raise InputError(f"{where}: {column!r} must be a list of objects, found {kind(value)}.")
    if not is_empty(kwargs) and not isinstance(kwargs, Mapping):
        raise InputError(f"{where}: 'chat_template_kwargs' must be an object, found {kind(kwargs)}.")
    named = {**(kwargs or {}), **({"documents": documents} if documents else {})}
    taken = sorted(_RESERVED - {"documents"} & named.keys())
    if taken:
        raise InputError(f"{where}: 'chat_template_kwargs' may not have {taken[0]!r}, which the recipe sets itself.")
    return {"tools": tools or None, "template_kwargs": named or None}


def _system(row: Mapping[str, Any], where: str) -> list[Turn]:
    value = row.get("system")
    if is_empty(value):
        return []
    return [Turn({"role": "system", "content": _text(row, "system", where)}, None)]


def beginning(example: Example) -> str:
    """A hash of what comes before a row's first answer; of a whole text, of all of it."""
    if example.verbatim:
        prompt: Any = example.instruction or example.response
    else:
        prompt = list(takewhile(lambda message: message["role"] != "assistant", example.messages)) or example.messages
    return hashlib.blake2b(json.dumps(prompt, sort_keys=True).encode(), digest_size=8).hexdigest()


def _one_of(row: Mapping[str, Any], columns: Iterable[str], where: str) -> str | None:
    """The column with content among synonyms; the first present one where none has any."""
    present = [column for column in columns if column in row]
    filled = [column for column in present if not is_empty(row[column])]
    if len({row[column] for column in filled}) > 1:
        raise InputError(
            f"{where}: {' and '.join(map(repr, filled))} both say something. Keep one, or leave one out with "
            f"--drop-columns {filled[1]}."
        )
    return next(iter(filled or present), None)


def _text(row: Mapping[str, Any], column: str, where: str, may_be_empty: bool = False) -> str:
    value = row[column]
    if not isinstance(value, str) or not (value or may_be_empty):
        raise InputError(f"{where}: {column!r} must be a text, found {kind(value)}. Fix the row or leave it out.")
    return value
