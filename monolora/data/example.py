"""Examples of a task: a prompt and its answer, and the messages that they are read from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from monolora.errors import InputError, unknown


class Example(NamedTuple):
    """One answer, and all that comes before it.

    Two examples are equal if their contents are, wherever they come from.

    Attributes:
        instruction: what to do; with ``verbatim``, the whole prompt; empty where the last message of ``history`` is
            what is answered (the result of a tool, a message with more than a text).
        response: the answer's text, trained on.
        context: text that the instruction refers to; may be empty.
        history: earlier messages of a conversation, as a chat template takes them, a system message included.
        verbatim: take the prompt as it is, without a chat template (prompt-completion data sets of plain text). Without
            a prompt it is a whole text, which is trained on from its second token on.
        answer: the answer's message, where it is more than its text (tool calls, reasoning).
        tools: schemas of the tools that the chat template is given.
        template_kwargs: further variables of the chat template.
        origin: the data set and the row that it is from, for errors; may be empty.
        group: what examples share that must not be divided between training and held-out rows; empty for none.
    """

    instruction: str
    response: str
    context: str = ""
    history: tuple[dict[str, Any], ...] = ()
    verbatim: bool = False
    answer: Mapping[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] | None = None
    origin: str = ""
    group: str = ""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages before the answer."""
        question = "\n\n".join(filter(None, (self.instruction, self.context)))
        return [*self.history, *([{"role": "user", "content": question}] if question or not self.history else [])]

    @property
    def answer_message(self) -> dict[str, Any]:
        """The answer as a message."""
        return {"role": "assistant", "content": self.response} if self.answer is None else dict(self.answer)

    @property
    def has_answer(self) -> bool:
        """Whether there is something to train on, a text or a tool call."""
        return bool(self.response or self.answer)

    @property
    def is_unanswered(self) -> bool:
        """Whether its answer has no tool call, and no text but white space."""
        return not (self.response.strip() or (self.answer or {}).get("tool_calls"))

    @property
    def is_chat(self) -> bool:
        """Whether it is more than an instruction with a context; only a chat template can render it."""
        return bool(self.history or self.answer or self.tools or self.template_kwargs)

    @property
    def normalised_prompt(self) -> str:
        """The texts before the answer, without case and spacing. It is the same where a person would say so."""
        return " ".join(" ".join(map(text_of, self.messages)).casefold().split())

    @property
    def is_whole_text(self) -> bool:
        """Whether it is a text that is trained on as in pretraining, with nothing before it."""
        return self.verbatim and not self.instruction

    def content(self) -> tuple[Any, ...]:
        """The fields for comparisons and fingerprints, without those of chats where it is none."""
        text, chat = self[:5], self[5:8]
        return (*text, *chat) if any(chat) else text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Example) and self[:8] == other[:8]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:8])

    def __repr__(self) -> str:
        names = (name for name, _ in zip(self._fields, self.content(), strict=False))
        return f"Example({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


# Messages of a data set's rows, in the form that chat templates take, whichever of the usual forms they have.
#
# OpenAI's and TRL's `role` and `content` (a text, null beside tool calls, or parts of type `text`), ShareGPT's `from`
# and `value` with its own names of roles, the older `function_call`, and marks of what is trained (`weight`, `train`,
# `loss`). Keys that only a template knows are handed to it.


_CALL = "function_call"
ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "model", "bot", "chatbot", "ai", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys((_CALL, "tool_call"), _CALL),
}
REASONING = ("reasoning_content", "reasoning", "thinking")
_TRAINED = ("weight", "train", "loss")
# Names of columns, and of keys of a message, that say of a row what a reader or a trainer must not miss. One that is
# not understood where it stands is refused.
SHAPING = frozenset(
    {
        "system", "system_prompt", "system_message", "sys_prompt", "developer", "persona", "prefix", "suffix",
        "history", "chat_history", "conversation_history", "previous_messages", "few_shot", "few_shots", "context",
        "contexts", "input", "inputs", "documents", "document", "docs", "passage", "passages", "knowledge",
        "tools", "tool", "functions", "function", "tool_calls", "tool_call", "function_call", "function_calls",
        "tool_choice", "tool_responses", "chat_template", "chat_template_kwargs", "template_kwargs",
        "image", "images", "video", "videos", "audio", "audios", "file", "files", "reasoning", "reasoning_content",
        "thinking", "thought", "thoughts", "chain_of_thought", "cot", "rationale", "scratchpad",
        "weight", "weights", "train", "train_detail", "training", "loss", "loss_mask", "loss_scale", "mask",
    }
)  # fmt: skip


class Turn(NamedTuple):
    """A message, and whether it is trained on; None where the row does not say."""

    message: dict[str, Any]
    is_trained: bool | None


def is_empty(value: Any) -> bool:
    """Whether a cell says nothing."""
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def parsed(value: Any) -> Any:
    """A list or an object from JSON in a text, as CSV files and mixed columns hold it; other values as they are."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def without_none(value: Any) -> Any:
    """Without the keys that a table of structs filled in; ``content`` stays, which is null beside tool calls."""
    if isinstance(value, dict):
        filled = {key: without_none(item) for key, item in value.items() if item is not None or key == "content"}
        return filled if any(item is not None for item in filled.values()) else {}
    return [without_none(item) for item in value] if isinstance(value, list) else value


def turns(value: Any, column: str, where: str) -> list[Turn]:
    """The messages of a row.

    Args:
        value: the cell.
        column: its column.
        where: data set and row, for the error.

    Raises:
        InputError: if it is no list of messages, or a message has what is not understood.
    """
    messages = parsed(value)
    if not isinstance(messages, list) or not messages or not all(isinstance(message, Mapping) for message in messages):
        raise InputError(f"{where}: {column!r} must be a list of messages with 'role' and 'content'.")
    return [_turn(message, where) for message in messages]


def _turn(raw: Mapping[str, Any], where: str) -> Turn:
    message = {key: value for key, value in raw.items() if value is not None or key == "content"}
    for ours, theirs in (("role", "from"), ("content", "value")):
        if theirs in message and message.get(ours) is None:
            message[ours] = message.pop(theirs)
    name = message.get("role")
    if not isinstance(name, str):
        raise InputError(f"{where}: a message needs a text 'role', found {kind(name)}.")
    if name.lower() not in ROLES:
        raise unknown(f"role in {where},", name, ROLES)
    is_trained = _is_trained(message, where)
    role = ROLES[name.lower()]
    if role == _CALL:
        message |= {"role": "assistant", "content": "", "tool_calls": _calls(message.get("content"), where)}
    else:
        message["role"] = role
        _take_function_call(message, where)
        message["content"] = _content(message, where)
        if "content" not in raw and "value" not in raw:
            del message["content"]
    if is_trained and message["role"] != "assistant":
        raise InputError(f"{where}: a message of the role {name!r} is marked as trained; only answers are trained on.")
    known = {"content", "role", "tool_calls", *REASONING}
    strange = [key for key in message if key.lower() in SHAPING - known and not is_empty(message[key])]
    if strange:
        raise InputError(f"{where}: the key {strange[0]!r} of a message is not understood. Remove it, or rename it.")
    return Turn(message, is_trained)


def _is_trained(message: dict[str, Any], where: str) -> bool | None:
    marks = {key: message.pop(key) for key in _TRAINED if key in message}
    for key, value in marks.items():
        if value not in (0, 1):
            raise InputError(f"{where}: {key!r} of a message must be 0 or 1 (false or true), found {value!r}.")
    if len(set(marks.values())) > 1:
        raise InputError(f"{where}: {' and '.join(map(repr, marks))} of a message contradict each other.")
    return bool(next(iter(marks.values()))) if marks else None


def _take_function_call(message: dict[str, Any], where: str) -> None:
    """OpenAI's older form of a single call."""
    call = message.pop("function_call", None)
    if not is_empty(call):
        if not is_empty(message.get("tool_calls")):
            raise InputError(f"{where}: a message has both 'function_call' and 'tool_calls'. Keep one of them.")
        message["tool_calls"] = _calls(call, where)
    calls = parsed(message.get("tool_calls"))
    if is_empty(calls):
        message.pop("tool_calls", None)
        return
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise InputError(f"{where}: 'tool_calls' must be a list of calls, found {kind(calls)}.")
    if message["role"] != "assistant":
        raise InputError(f"{where}: a message of the role {message['role']!r} has 'tool_calls'; only answers can.")
    message["tool_calls"] = calls


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls written as ``{"name": …, "arguments": …}``, or a list of these."""
    value = parsed(value)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        name = call.get("name") if isinstance(call, Mapping) else None
        if not isinstance(name, str) or not set(call) <= {"name", "arguments", "parameters"} or len(call) != 2:
            raise InputError(f"{where}: a function call must be JSON with 'name' and 'arguments', found {value!r:.60}.")
        arguments = call.get("arguments", call.get("parameters"))
        calls.append({"type": "function", "function": {"name": name, "arguments": arguments}})
    return calls


def _content(message: Mapping[str, Any], where: str) -> str | list[dict[str, Any]] | None:
    """A text; None beside tool calls; parts of text where there are several."""
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            if isinstance(part, Mapping) and part.get("type", "text") != "text":
                raise InputError(
                    f"{where}: a message has a part of type {part['type']!r}; a model of texts is trained. Leave the "
                    "row out."
                )
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                raise InputError(f"{where}: a part of a message must have the type 'text' and a text 'text'.")
        return cast(str, content[0]["text"]) if len(content) == 1 else [dict(part) for part in content] or ""
    if content is None and (message.get("tool_calls") or any(message.get(key) for key in REASONING)):
        return None
    if not isinstance(content, str):
        raise InputError(f"{where}: a message needs a text 'content', found {kind(content)}.")
    return content


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message's content."""
    content = message.get("content")
    return "".join(part["text"] for part in content) if isinstance(content, list) else content or ""


def is_plain(message: Mapping[str, Any]) -> bool:
    """Whether a message is its role and a text."""
    return message.keys() == {"role", "content"} and isinstance(message["content"], str)


def pairs(value: Any, where: str) -> list[Turn]:
    """Alpaca's ``history``, ``[[question, answer], …]``, or messages, as messages."""
    history = parsed(value)
    if isinstance(history, list) and history and isinstance(history[0], Mapping):
        return turns(history, "history", where)
    if not isinstance(history, list) or not all(map(_is_pair, history)):
        raise InputError(f"{where}: 'history' must be a list of pairs of texts, question and answer.")
    return [
        Turn({"role": role, "content": text}, None)
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)


def kind(value: object) -> str:
    """A name for the value's type, for an error."""
    return "nothing" if value is None or value == "" else f"a value of type {type(value).__name__}"
