"""The messages of a chat that two models may answer, a tuned one and its base; and what an answer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

TUNED, BASE = "adapter", "base"  # who answers; TUNED is the whole model where there is no adapter

Say = Callable[[str], None]  # called with the pieces of an answer as they come


class Answer(NamedTuple):
    """An answer.

    Attributes:
        text: all of it.
        end: ``stop`` at an end token, ``length`` at the limit, ``interrupted`` by Ctrl-C.
    """

    text: str
    end: str


class Speaker(Protocol):
    """Who answers: a model, and its base where there is one.

    Attributes:
        titles: what the models are called, by ``TUNED`` and ``BASE``.
    """

    titles: dict[str, str]

    def check(self, messages: list[dict[str, str]]) -> None:
        """Raises: InputError, for messages that the model's template refuses, as far as that is known here."""

    def answer(self, messages: list[dict[str, str]], who: str, say: Say) -> Answer:
        """The answer of ``who`` to the messages.

        Raises:
            InputError: for messages that the model cannot read.
            RunError: if the answering fails.
        """


@dataclass
class Turn:
    """A question, and its answers by who gave them."""

    question: str
    answers: dict[str, str] = field(default_factory=dict)


@dataclass
class Conversation:
    """The system message, which may be empty, and the turns so far."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def messages(self, who: str, question: str) -> list[dict[str, str]]:
        """What ``who`` reads before it answers ``question``: its own answers, and the other's to what it was not asked.

        Args:
            who: ``TUNED`` or ``BASE``.
            question: that comes after the turns.
        """
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            given = turn.answers.get(who, next(iter(turn.answers.values())))
            messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": given}]
        return [*messages, {"role": "user", "content": question}]
