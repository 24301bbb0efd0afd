"""What a task is: examples to train on, examples to be scored on, and how an answer is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from monolora.errors import InputError


class Example(NamedTuple):
    """One instruction and its answer.

    Attributes:
        instruction: what to do; with ``verbatim``, the whole prompt.
        response: the answer, trained on.
        context: material that the instruction speaks of; may be empty.
        history: earlier messages of a conversation (``role`` and ``content``), a system message included.
        verbatim: take the prompt as it is, without a chat template (prompt-completion data sets of plain text).
    """

    instruction: str
    response: str
    context: str = ""
    history: tuple[dict[str, Any], ...] = ()
    verbatim: bool = False


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
    """

    name: str
    train: list[Example] = field(repr=False)
    test: list[Example] = field(repr=False)
    labels: tuple[str, ...] = ()
    max_new_tokens: int = 256
    train_samples: int = 5000
    test_samples: int = 1000

    def chosen(self, max_train: int | None = None, max_test: int | None = None) -> tuple[list[Example], list[Example]]:
        """The examples of a run: the first of the fixed order, so that runs of every seed share them."""
        return self.train[: max_train or self.train_samples], self.test[: max_test or self.test_samples]

    def validation(self, samples: int, max_train: int | None = None) -> list[Example]:
        """The last training examples, none of which a run with ``max_train`` trains on.

        Raises:
            InputError: if there are not so many.
        """
        left = len(self.train) - (max_train or self.train_samples)
        if samples > left:
            raise InputError(
                f"--validation-samples {samples}: {self.name} has {len(self.train)} training examples, so "
                f"{max(0, left)} are not trained on. Take fewer, or set --max-train-samples lower."
            )
        return self.train[-samples:]
