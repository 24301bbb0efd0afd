"""An example of a task: a prompt and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Example(NamedTuple):
    """One answer, and all that comes before it.

    Two examples are equal if their contents are, wherever they come from.

    Attributes:
        instruction: what to do; with ``verbatim``, the whole prompt; empty where the last message of ``history`` is
            what is answered (the result of a tool, a message with more than a text).
        response: the answer's text, trained on.
        context: text that the instruction refers to; may be empty.
        history: earlier messages of a conversation, as a chat template takes them, a system message included.
        verbatim: take the prompt as it is, without a chat template (prompt-completion data sets of plain text).
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
        """Whether there is something to train on: a text, or a tool call."""
        return bool(self.response or self.answer)

    @property
    def is_chat(self) -> bool:
        """Whether it is more than an instruction with a context: only a chat template can render it."""
        return bool(self.history or self.answer or self.tools or self.template_kwargs)

    def content(self) -> tuple[Any, ...]:
        """What it says, for comparing and for fingerprints; fields that only chats have are left out of others."""
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
