"""The rows of a training run, by what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, cast

from monolora.data.chat_template import answer_spans
from monolora.data.conversations import Sequences
from monolora.data.mixture import Mixture, mixture_task
from monolora.data.mixture_config import from_settings
from monolora.data.task import ALL, Row, SampleLimits, Source, Task
from monolora.recipes.training.arguments import Arguments, RunArguments
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

    @property
    def validation_sources(self) -> list[str] | None:
        """Of a mixture, the data set of each validation example."""
        if not isinstance(self.task, Mixture):
            return None
        held_out = zip(self.task.parts, self.task.held_out, strict=True)
        return [part.name for part, examples in held_out for _ in examples]

    def counts(self, sequences: Sequences, max_length: int | None) -> dict[str, Any]:
        """Of rows and columns, for the run's record; of a mixture under ``sources``, for each data set.

        Args:
            sequences: the training examples tokenized.
            max_length: the limit in tokens; None for none.
        """
        if not isinstance(self.task, Mixture):
            columns = {"columns": self.task.columns._asdict()} if self.task.columns else {}
            return {**columns, **(self.task.counts or {})}
        limiting = self.task.limited_by
        return {
            "sources": _source_counts(self.task, sequences, max_length),
            "limited_by": None if limiting is None else limiting.name,
        }


def _source_counts(mixture: Mixture, sequences: Sequences, max_length: int | None) -> dict[str, Any]:
    """What is trained on of each data set; examples that truncation drops are not."""
    trained = [0] * len(mixture.parts)
    tokens = [0] * len(mixture.parts)
    for members, labels in zip(sequences.members, sequences.rows["labels"], strict=True):
        source = mixture.train_sources[members[0]]
        answers = answer_spans(labels[:max_length])
        trained[source] += len(answers)
        tokens[source] += sum(stop - start for start, stop in answers)
    return {
        part.name: {
            "asked_share": part.share,
            "share": trained[source] / max(1, sum(trained)),
            "token_share": tokens[source] / max(1, sum(tokens)),
            "examples": part.examples,
            "train": trained[source],
            "answer_tokens": tokens[source],
            "available": part.available,
            "validation": len(mixture.held_out[source]),
            "left_out": part.left_out,
            **({"columns": part.columns._asdict()} if part.columns else {}),
            **(part.counts or {}),
        }
        for source, part in enumerate(mixture.parts)
    }


def dataset_names(flags: RunArguments) -> list[str]:
    """The data sets that a run reads."""
    return [flags.dataset] if flags.datasets is None else [source["path"] for source in flags.datasets]


def read_data(
    arguments: Arguments,
    load: Callable[[str, Source, SampleLimits], Task[Row]],
    allow_empty_answers: bool = False,
    train_on: str = ALL,
) -> Data[Row]:
    """The rows of ``--dataset``, or of all of them.

    Args:
        arguments: all flags.
        load: reads a task by name; of a mixture, all are examples.
        allow_empty_answers: whether an answer may be empty.
        train_on: which answers of a row (:class:`monolora.data.task.Source`).

    Raises:
        InputError: where there is no such task or data set, or its rows cannot be read.
    """
    script, flags = arguments.script, arguments.adapter
    task: Task[Row]
    if flags.datasets is not None:
        limits = SampleLimits(flags.max_train_samples, flags.validation_samples or 0, flags.max_eval_samples)
        components = from_settings(flags.datasets, "datasets")
        task = cast(Task[Row], mixture_task(components, arguments.training.seed, limits, allow_empty_answers, train_on))
    else:
        source = Source(
            script.dataset_config,
            script.dataset_train_split,
            script.dataset_test_split,
            tuple(flags.drop_columns or ()),
            allow_empty_answers,
            train_on=train_on,
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
