"""The rows of a training run, by what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from monolora.data.task import Row, SampleLimits, Source, Task
from monolora.recipes.training.arguments import Arguments
from monolora.run_record import fingerprint_rows


@dataclass(frozen=True, kw_only=True)
class Data(Generic[Row]):
    """The rows of a run.

    Attributes:
        task: that they are of.
        train: trained on.
        test: held out, and scored before and after.
        validation: training rows that are held out.
    """

    task: Task[Row]
    train: list[Row]
    test: list[Row]
    validation: list[Row]

    def fingerprints(self) -> dict[str, str]:
        """Of each part that has rows."""
        parts = {"train": self.train, "test": self.test} | ({"validation": self.validation} if self.validation else {})
        return {name: fingerprint_rows(map(str, part)) for name, part in parts.items()}


def read_data(
    arguments: Arguments, load: Callable[[str, Source, SampleLimits], Task[Row]], allow_empty_answers: bool = False
) -> Data[Row]:
    """The rows of ``--dataset``.

    Args:
        arguments: all flags.
        load: reads a task by name.
        allow_empty_answers: whether an answer may be empty.

    Raises:
        InputError: where there is no such task or data set, or its rows cannot be read.
    """
    script, flags = arguments.script, arguments.adapter
    source = Source(
        script.dataset_config,
        script.dataset_train_split,
        script.dataset_test_split,
        tuple(flags.drop_columns or ()),
        allow_empty_answers,
    )
    limits = SampleLimits(
        flags.max_train_samples or Task.train_samples,
        flags.validation_samples or 0,
        flags.max_eval_samples or Task.test_samples,
    )
    task = load(flags.dataset, source, limits)
    train, test = task.selected(flags.max_train_samples, flags.max_eval_samples)
    validation = task.validation(flags.validation_samples, flags.max_train_samples) if flags.validation_samples else []
    return Data(task=task, train=train, test=test, validation=validation)
