"""What a task is: examples to train on, examples to be scored on, and how an answer is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from monolora.errors import InputError


class Example(NamedTuple):
    """One answer, and all that comes before it.

    Two examples are equal if they say the same, wherever they are from.

    Attributes:
        instruction: what to do; with ``verbatim``, the whole prompt; empty where the last message of ``history`` is
            what is answered (the result of a tool, a message with more than a text).
        response: the answer's text, trained on.
        context: material that the instruction speaks of; may be empty.
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


@dataclass(frozen=True, kw_only=True)
class Task:
    """Examples and how they are scored.

    Attributes:
        name: as given by ``--dataset``.
        train: examples to train on, shuffled by the task's own fixed seed.
        test: held-out examples.
        labels: the possible answers of a classification task; empty for free text.
        max_new_tokens: how far an answer is generated when scoring.
        train_samples: how many training examples are taken unless ``--max-train-samples`` says otherwise.
        test_samples: likewise for scoring.
        counts: of a data set of one's own, what became of its rows (``custom.COUNTS``).
    """

    name: str
    train: list[Example] = field(repr=False)
    test: list[Example] = field(repr=False)
    labels: tuple[str, ...] = ()
    max_new_tokens: int = 256
    train_samples: int = 5000
    test_samples: int = 1000
    counts: Mapping[str, int] | None = field(default=None, repr=False, compare=False)

    def chosen(self, max_train: int | None = None, max_test: int | None = None) -> tuple[list[Example], list[Example]]:
        """The examples of a run: the first of the fixed order, so that runs of every seed share them."""
        return self.train[: max_train or self.train_samples], self.test[: max_test or self.test_samples]

    def validation(self, samples: int, max_train: int | None = None) -> list[Example]:
        """The last training examples, none of a conversation that a run with ``max_train`` trains on.

        Raises:
            InputError: if there are not so many.
        """
        trained, _ = self.chosen(max_train)
        groups = {example.group for example in trained} - {""}
        left = [example for example in self.train[len(trained) :] if example.group not in groups]
        if samples > len(left):
            raise InputError(
                f"--validation-samples {samples}: {self.name} has {len(self.train)} training examples, so "
                f"{len(left)} are not trained on. Take fewer, or set --max-train-samples lower."
            )
        return left[-samples:]
