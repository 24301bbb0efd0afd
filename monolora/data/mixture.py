"""Mixtures: the examples of several data sets, in given shares, as one task.

The shares are those of the examples that are trained on. No example is repeated, so a mixture is as large as its data
sets allow: the first that is used up limits it. That is the rule of TRL's mixtures too
(``trl.scripts.utils.get_dataset``), whose names the fields of
:class:`~monolora.data.mixture_config.Component` have.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from random import Random
from typing import NamedTuple

from monolora.data.example import Example
from monolora.data.mixture_config import Component
from monolora.data.row_formats import beginning
from monolora.data.task import ALL, Columns, SampleLimits, Source, Task
from monolora.data.tasks import BUILT_IN, load_task
from monolora.errors import InputError


class Part(NamedTuple):
    """What a mixture holds of a data set.

    Attributes:
        name: of the data set; with configuration and split where two components differ in these alone.
        share: of the mixture, as it was asked for: 0 to 1.
        available: examples that could have been trained on.
        examples: number of those that are.
        left_out: examples that begin as one that the mixture holds out.
        counts: its rows, by what became of them; None for a built-in task.
        columns: likewise.
    """

    name: str
    share: float
    available: int
    examples: int
    left_out: int
    counts: Mapping[str, int] | None
    columns: Columns | None


@dataclass(frozen=True, kw_only=True)
class Mixture(Task):
    """Several data sets as one task: it is trained on all of them, and scored as the first.

    Attributes:
        parts: the data sets.
        train_sources: of each training example, the index of its part.
        held_out: for validation, of each part.
    """

    parts: tuple[Part, ...]
    train_sources: list[int] = field(repr=False)
    held_out: tuple[list[Example], ...] = field(repr=False)

    def selected(
        self, max_train: int | None = None, max_test: int | None = None
    ) -> tuple[list[Example], list[Example]]:
        """All training examples, which are those of the run, and the first held-out ones."""
        return self.train, self.test[: max_test or self.test_samples]

    def validation(self, samples: int, max_train: int | None = None) -> list[Example]:
        """The examples that were held out of each part, one part after the other."""
        return [example for examples in self.held_out for example in examples]

    @property
    def limited_by(self) -> Part | None:
        """The data set that is used up, and by its share keeps others from being used up too."""
        used_up = [part for part in self.parts if part.examples == part.available]
        return used_up[0] if 0 < len(used_up) < len(self.parts) else None


def mixture_task(
    components: Sequence[Component],
    seed: int,
    limits: SampleLimits,
    allow_empty_answers: bool = False,
    train_on: str = ALL,
) -> Mixture:
    """Read the data sets, and mix them.

    Of each the first examples of its fixed order are taken, so that runs of every seed share them. Held out are, of
    each, its own test rows (those of the first are scored) and its share of the validation examples. Nothing is
    trained on that begins as a row of the first that is scored, or as a validation example.

    Args:
        components: at least two.
        seed: of the order in which the data sets take turns.
        limits: of the whole mixture; ``train`` is None for as many as the data sets allow.
        allow_empty_answers: whether an answer may be empty.
        train_on: which answers of a row (:class:`monolora.data.task.Source`).

    Raises:
        InputError: if a data set cannot be read, or is too small to have a share.
    """
    tasks = [_loaded(component, components, limits, allow_empty_answers, train_on) for component in components]
    names = _names(components)
    first = tasks[0]
    held_out = _held_out(tasks, names, _shares(components, [task.train for task in tasks]), limits.validation)
    # All scored rows, however few a run scores: a resumed run may score others, and trains on the same.
    kept = _apart(tasks, names, held_out, set(map(beginning, first.test)))
    shares = _shares(components, kept)
    numbers = allocated([len(examples) for examples in kept], shares, limits.train)
    for name, number in zip(names, numbers, strict=True):
        if number == 0:
            raise InputError(
                f"The share of {name} is less than one of the {sum(numbers)} examples of the mixture. Raise it or "
                f"--max-train-samples, or leave {name} out."
            )
    order = interleaved(numbers, seed)
    turns = [iter(examples) for examples in kept]
    return Mixture(
        name=" + ".join(names),
        train=[next(turns[source]) for source in order],
        test=first.test,
        scorer=first.scorer,
        max_new_tokens=first.max_new_tokens,
        test_samples=first.test_samples,
        parts=tuple(
            Part(
                name=names[source],
                share=float(shares[source] / sum(shares)),
                available=len(kept[source]),
                examples=numbers[source],
                left_out=len(task.train) - len(held_out[source]) - len(kept[source]),
                counts=task.counts,
                columns=task.columns,
            )
            for source, task in enumerate(tasks)
        ),
        train_sources=order,
        held_out=held_out,
    )


def _shares(components: Sequence[Component], examples: Sequence[Sequence[Example]]) -> list[Fraction]:
    """The shares that were asked for; those of all examples where none were."""
    return [
        Fraction(len(own) if component.fraction is None else str(component.fraction))
        for component, own in zip(components, examples, strict=True)
    ]


def _loaded(
    component: Component,
    components: Sequence[Component],
    limits: SampleLimits,
    allow_empty_answers: bool,
    train_on: str,
) -> Task:
    """The task of a component, of which no more rows are read than its share of the mixture needs."""
    train, validation = None, 0
    if limits.train is not None and component.fraction is not None:
        share = component.fraction / math.fsum(other.fraction or 0 for other in components)
        train, validation = math.ceil(limits.train * share) + _SPARE, math.ceil(limits.validation * share) + 1
    source = Source(
        config=component.name,
        train_split=component.split,
        columns=component.columns,
        allow_empty_answers=allow_empty_answers and component.path not in BUILT_IN,
        train_on=train_on,
    )
    is_scored = component is components[0]
    return load_task(component.path, source, SampleLimits(train, validation, None if is_scored else 1))


_SPARE = 1000  # examples that are read beyond a share, since those that begin as a held-out one are left out


def _names(components: Sequence[Component]) -> list[str]:
    """Each path; with configuration and split where another component has the same."""
    paths = [component.path for component in components]
    return [
        "/".join(filter(None, (component.path, component.name, component.split)))
        if paths.count(component.path) > 1
        else component.path
        for component in components
    ]


def _held_out(
    tasks: Sequence[Task], names: Sequence[str], shares: Sequence[Fraction], samples: int
) -> tuple[list[Example], ...]:
    """The last examples of each data set, in the shares of the mixture."""
    if not samples:
        return tuple([] for _ in tasks)
    numbers = allocated([len(task.train) for task in tasks], shares, samples)
    for task, name, number in zip(tasks, names, numbers, strict=True):
        if number == 0:
            raise InputError(
                f"--validation-samples {samples}: the share of {name} is less than one example. Raise it, or leave "
                f"{name} out."
            )
        if number >= len(task.train):
            raise InputError(
                f"--validation-samples {samples}: {name} has {len(task.train)} examples, and {number} would be held "
                "out. Take fewer."
            )
    return tuple(task.train[-number:] for task, number in zip(tasks, numbers, strict=True))


def _apart(
    tasks: Sequence[Task], names: Sequence[str], held_out: Sequence[Sequence[Example]], scored: set[str]
) -> list[list[Example]]:
    """The examples of each data set that begin unlike what is held out.

    A data set's own rows are already apart from its own test rows (:func:`monolora.data.task.dataset_task`).
    """
    validated = {beginning(example) for examples in held_out for example in examples}
    groups = {example.group for examples in held_out for example in examples} - {""}
    kept = []
    for number, (task, name, own) in enumerate(zip(tasks, names, held_out, strict=True)):
        candidates = task.train[: len(task.train) - len(own)]
        examples = [each for each in candidates if each.group not in groups and beginning(each) not in validated]
        if not examples:
            raise InputError(
                f"All examples of {name} begin as one that is held out for validation. Leave --validation-samples out."
            )
        if number and scored:
            examples = _without_scored(examples, name, scored, names[0])
        kept.append(examples)
    return kept


def _without_scored(examples: list[Example], name: str, scored: set[str], first: str) -> list[Example]:
    """Without those that begin as a scored row; all, with a warning, where most do: rows may all begin alike."""
    others = [example for example in examples if beginning(example) not in scored]
    if len(others) < len(examples) / 2:
        warnings.warn(
            f"{len(examples) - len(others)} of {len(examples)} examples of {name} begin as a scored row of {first}, so "
            "the scores are of questions that are trained on too.",
            stacklevel=2,
        )
        return examples
    return others


def allocated(available: Sequence[int], shares: Sequence[Fraction], most: int | None) -> list[int]:
    """How many examples of each data set are in a mixture.

    Args:
        available: examples of each data set.
        shares: their shares, of any sum.
        most: the size of the mixture, if the data sets allow as much; None for the largest without repetition.

    Returns:
        Whole numbers that differ from the shares of their sum by less than 1, none above what is available.
    """
    total = sum(shares)
    size = min(Fraction(number) * total / share for number, share in zip(available, shares, strict=True))
    if most is not None:
        size = min(size, Fraction(most))
    quotas = [size * share / total for share in shares]
    numbers = [math.floor(quota) for quota in quotas]
    remainders = sorted(range(len(quotas)), key=lambda index: numbers[index] - quotas[index])  # the largest first
    for index in remainders[: round(size) - sum(numbers)]:
        numbers[index] += 1
    return numbers


def interleaved(numbers: Sequence[int], seed: int) -> list[int]:
    """The order in which data sets take turns: evenly, and within that by chance.

    A data set's example ``k`` of ``n`` is put at a random place in the ``k``-th of ``n`` equal parts of the whole, so
    every stretch of the mixture holds about the shares of all of it.

    Args:
        numbers: examples of each data set.
        seed: of the places.

    Returns:
        The index of a data set for each example of the mixture.
    """
    random = Random(seed)
    places = [
        ((example + random.random()) / number, source)
        for source, number in enumerate(numbers)
        for example in range(number)
    ]
    return [source for _, source in sorted(places)]
