"""A task: examples to train on, examples to be scored on, and the scorer of their answers; any data set as one."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Generic, NamedTuple, Protocol

import datasets
from typing_extensions import TypeVar

from monolora.data.datasets import load_dataset
from monolora.data.example import Example
from monolora.data.row_formats import RowFormat
from monolora.data.scoring import FreeText, Scorer, WholeText
from monolora.errors import InputError, unknown


class Grouped(Protocol):
    """What a task can hold: examples, or something made of them."""

    @property
    def group(self) -> str:
        """What rows share that must not be divided between training and held-out rows; empty for none."""


Row = TypeVar("Row", bound=Grouped, default=Example)


class Columns(NamedTuple):
    """The columns of a data set, and what is made of them.

    Attributes:
        format: by the names of its columns (``monolora/data/row_formats.py``).
        read: the columns that examples are made of.
        ignored: the others.
    """

    format: str
    read: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Task(Generic[Row]):
    """Examples, and the scorer of their answers. Other rows than examples are possible (preferences).

    Attributes:
        name: as given by ``--dataset``.
        train: examples to train on, shuffled by the task's own fixed seed.
        test: held-out examples.
        scorer: how an answer is read and measured.
        max_new_tokens: how far an answer is generated when scoring.
        train_samples: training examples without ``--max-train-samples``.
        test_samples: examples scored by default.
        counts: rows of a data set that is no built-in task, by what became of them (:data:`COUNTS`).
        columns: of a data set that is no built-in task.
    """

    name: str
    train: list[Row] = field(repr=False)
    test: list[Row] = field(repr=False)
    scorer: Scorer
    max_new_tokens: int = 256
    train_samples: int = 5000
    test_samples: int = 1000
    counts: Mapping[str, int] | None = field(default=None, repr=False, compare=False)
    columns: Columns | None = field(default=None, repr=False, compare=False)

    def selected(self, max_train: int | None = None, max_test: int | None = None) -> tuple[list[Row], list[Row]]:
        """The examples of a run: the first of the fixed order, so that runs of every seed share them."""
        return self.train[: max_train or self.train_samples], self.test[: max_test or self.test_samples]

    def validation(self, samples: int, max_train: int | None = None) -> list[Row]:
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


# A data set as a task: counts of the rows that are read for training, then the held-out share.
COUNTS = {
    "read": "rows read",
    "untrained_rows": "rows without a trained turn",
    "held_out_questions": "rows left out, with the question of a held-out row",
    "untrained_turns": "answers that are only context",
    "unanswered_turns": "messages after the last answer",
}
HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 1000
_BATCH = 1000  # rows read at a time
_CHECKED_WHOLE = 20_000  # rows that are all read, however few are trained on
TRAIN_ON = ALL, LAST = ("all", "last")


class Source(NamedTuple):
    """The part of a data set to read.

    Attributes:
        config: its configuration.
        train_split: name of the split that is trained on.
        test_split: name of the split that is scored on.
        drop_columns: ignored columns.
        allow_empty_answers: whether an answer may be empty.
        columns: those of which it consists; empty for all.
        train_on: which answers of a row are trained on, ``all`` or ``last``; held-out rows have all of them.
    """

    config: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    drop_columns: tuple[str, ...] = ()
    allow_empty_answers: bool = False
    columns: tuple[str, ...] = ()
    train_on: str = ALL


class SampleLimits(NamedTuple):
    """How many examples are needed, so that no more rows are read; None for all."""

    train: int | None = None
    validation: int = 0
    test: int | None = None


NO_LIMITS = SampleLimits()
_WHOLE = Source()


def dataset_task(
    name: str,
    source: Source,
    answers: bool = True,
    limits: SampleLimits = NO_LIMITS,
    row_format: type[RowFormat] = RowFormat,
) -> Task[Any]:
    """The data set ``name`` as a free-text task.

    Where there is no test split, a fixed shuffle holds out a tenth of the rows, 1,000 at most: whole conversations.
    Rows that begin with the question of a held-out row are not trained on, unless nearly all do.

    Args:
        name: the data set.
        source: the part to read.
        answers: whether every example must have an answer.
        limits: how many examples are needed.
        row_format: how a row is read, and as what.

    Raises:
        InputError: if it is unavailable or empty, has none of the formats, or a row is not understood.
    """
    splits = load_dataset(name, source.config)
    rows = _Rows(_split(splits, source.train_split, name), name, source, answers, row_format)
    order = list(range(len(rows.table)))
    if len(order) <= _CHECKED_WHOLE:
        for _ in rows.read(order):  # so that the first bad row is named, trained on or not
            pass
    if source.test_split in splits:
        held_out = _Rows(splits[source.test_split], name, source, answers, row_format)
        test = held_out.examples(range(len(held_out.table)), limits.test)
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
    rows.counts.clear()  # only rows trained on are counted
    train = rows.training(order, groups, limits)
    if not train:
        raise InputError(f"The data set {name} has no assistant turn to train on.")
    counts = {what: rows.counts[what] for what in COUNTS}
    is_text = answers and isinstance(train[0], Example) and train[0].is_whole_text
    return Task(
        name=name,
        train=train,
        test=test,
        scorer=WholeText() if is_text else FreeText(),
        counts={"data_set": len(rows.table), **counts},
        columns=rows.columns,
    )


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


def read_examples(rows: datasets.Dataset, name: str, answers: bool = True, source: Source = _WHOLE) -> list[Example]:
    """Examples from the rows of one split.

    Args:
        rows: of the split.
        name: of the data set, for errors.
        answers: whether each must have one.
        source: which columns are read, and whether an answer may be empty.

    Raises:
        InputError: if there are no rows, the columns are of no known format, or a row is not understood.
    """
    return _Rows(rows, name, source, answers).examples(range(len(rows)), None)


def _split(splits: datasets.DatasetDict, split: str, name: str) -> datasets.Dataset:
    if split not in splits:
        raise unknown(f"split of {name}", split, splits)
    return splits[split]


class _Rows:
    """The rows of one split, read as they are needed."""

    def __init__(
        self,
        table: datasets.Dataset,
        name: str,
        source: Source,
        answers: bool,
        row_format: type[RowFormat] = RowFormat,
    ) -> None:
        if len(table) == 0:
            raise InputError(f"The data set {name} is empty.")
        allow_empty = source.allow_empty_answers or not answers
        self.name, self.answers, self.train_on = name, answers, source.train_on
        if absent := [column for column in source.columns if column not in table.features]:
            raise unknown(f"column of {name}", absent[0], list(table.features))
        names = list(table.features)
        table = table.select_columns(list(source.columns)) if source.columns else table
        self.format = row_format(name, table.features, source.drop_columns, answers, allow_empty)
        read = self.format.columns
        self.columns = Columns(self.format.title, tuple(read), tuple(name for name in names if name not in read))
        self.table = table.select_columns(read)

    @property
    def counts(self) -> Counter[str]:
        """The rows read so far, by outcome."""
        return self.format.counts

    def examples(self, numbers: Sequence[int], most: int | None) -> list[Any]:
        """Examples of the rows with these numbers, in order, until there are enough.

        Raises:
            InputError: if there are none.
        """
        examples: list[Any] = []
        for row in self.read(numbers):
            examples += row
            if most is not None and len(examples) >= most:
                return examples[:most]
        if not examples:
            raise InputError(f"The data set {self.name} has no assistant turn to train on.")
        return examples

    def training(self, order: Sequence[int], held_out: set[str], limits: SampleLimits) -> list[Any]:
        """The first examples of these rows and, for validation, the last ones."""
        first, taken = self._apart(order, held_out, limits.train)
        left_out = self.counts["held_out_questions"]
        # Rows may all begin alike and differ by a number only.
        if held_out and (not first or (self.answers and left_out > taken / 2)):
            if first:
                warnings.warn(
                    f"{left_out} of {taken} rows of {self.name} begin with the question of a held-out row, so held-out "
                    "questions are trained on too. Give it a test split to keep them apart.",
                    stacklevel=2,
                )
            held_out = set()
            self.counts.clear()
            first, taken = self._apart(order, held_out, limits.train)
        elif self.answers and left_out > taken / 100:
            warnings.warn(
                f"{left_out} of {taken} rows of {self.name} are not trained on: they begin with the question of a "
                "held-out row. Give it a test split to decide what is held out.",
                stacklevel=2,
            )
        trained = {example.group for example in first[: limits.train]}
        last: list[Any] = []
        for row in self.read(order[taken:][::-1]) if limits.validation else ():
            if row and row[0].group not in held_out | trained:
                last = self._trained(row) + last
            if len(last) >= limits.validation:
                break
        return first + last

    def _apart(self, order: Sequence[int], held_out: set[str], most: int | None) -> tuple[list[Any], int]:
        """Examples of rows that begin unlike the held-out ones, and how many rows were read.

        Stops where the first rows have none: a data set may be one row, repeated.
        """
        examples: list[Any] = []
        enough = len(order) if most is None else most + HELD_OUT_MOST
        taken = 0
        for taken, row in enumerate(self.read(order), start=1):
            if row and row[0].group in held_out:
                self.counts["held_out_questions"] += 1
                if not examples and taken >= enough:
                    break
                continue
            examples += self._trained(row)
            if most is not None and len(examples) >= most:
                break
        return examples, taken

    def _trained(self, row: list[Any]) -> list[Any]:
        """The examples of a row that are trained on."""
        if self.train_on == ALL:
            return row
        self.counts["untrained_turns"] += len(row[:-1])
        return row[-1:]

    def read(self, numbers: Sequence[int]) -> Iterator[list[Any]]:
        """The examples of each row; rows are read in batches as needed."""
        for start in range(0, len(numbers), _BATCH):
            batch = numbers[start : start + _BATCH]
            cells = self.format.cleaned(self.table.select(batch)[:])
            for number, *values in zip(batch, *cells.values(), strict=True):
                self.counts["read"] += 1
                yield self.format.read(dict(zip(cells, values, strict=True)), f"{self.name}, row {number + 1}")
