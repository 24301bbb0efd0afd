"""A task: examples to train on, examples to be scored on, and the scorer of their answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from monolora.data.example import Example
from monolora.data.scoring import Scorer
from monolora.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Task:
    """Examples, and the scorer of their answers.

    Attributes:
        name: as given by ``--dataset``.
        train: examples to train on, shuffled by the task's own fixed seed.
        test: held-out examples.
        scorer: how an answer is read and measured.
        max_new_tokens: how far an answer is generated when scoring.
        train_samples: how many training examples are taken unless ``--max-train-samples`` says otherwise.
        test_samples: likewise for scoring.
        counts: what became of the rows of a data set that is no built-in task (``splits.COUNTS``).
    """

    name: str
    train: list[Example] = field(repr=False)
    test: list[Example] = field(repr=False)
    scorer: Scorer
    max_new_tokens: int = 256
    train_samples: int = 5000
    test_samples: int = 1000
    counts: Mapping[str, int] | None = field(default=None, repr=False, compare=False)

    def selected(
        self, max_train: int | None = None, max_test: int | None = None
    ) -> tuple[list[Example], list[Example]]:
        """The examples of a run: the first of the fixed order, so that runs of every seed share them."""
        return self.train[: max_train or self.train_samples], self.test[: max_test or self.test_samples]

    def validation(self, samples: int, max_train: int | None = None) -> list[Example]:
        """The last training examples, none of a conversation that a run with ``max_train`` trains on.

        Raises:
            InputError: if there are not so many.
        """
        trained, _ = self.selected(max_train)
        groups = {example.group for example in trained} - {""}
        left = [example for example in self.train[len(trained) :] if example.group not in groups]
        if samples > len(left):
            raise InputError(
                f"--validation-samples {samples}: {self.name} has {len(self.train)} training examples, so "
                f"{len(left)} are not trained on. Take fewer, or set --max-train-samples lower."
            )
        return left[-samples:]
