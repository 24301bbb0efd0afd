"""How texts are counted apart: by label, and by whether the model answers rightly where that is asked for.

Shapes: G groups (the last one has the texts without a label), U units, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolora.errors import InputError, unknown
from monolora.eval.explain.records import Contrast, Counts
from monolora.eval.explain.text_sets import TextSet
from monolora.explain.histograms import contrast, merged
from monolora.explain.unit_statistics import Collected
from monolora.stats import false_discovery_rate

CORRECT, WRONG = "correct", "wrong"


@dataclass(frozen=True)
class Grouping:
    """Groups of the texts of a data set: pairs of label and correctness, label by label.

    Attributes:
        labels: their names.
        by_answer: whether each label has two groups, of right answers and of wrong ones.
    """

    labels: tuple[str, ...]
    by_answer: bool

    @property
    def groups(self) -> int:
        """How many there are, that of the texts without a label left out."""
        return len(self.labels) * self._each

    @property
    def _each(self) -> int:
        return 2 if self.by_answer else 1

    def of_texts(self, labels: Sequence[int], is_right: Sequence[bool]) -> list[int]:
        """The group of each text.

        Args:
            labels: place of each one's label; -1 for none.
            is_right: whether its answer is right; empty where that is not asked for.
        """
        if not self.by_answer:
            return list(labels)
        return [label * 2 + (not right) for label, right in zip(labels, is_right, strict=True)]

    def by_label(self, counts_UG: NDArray[np.int64], axis: int) -> NDArray[np.int64]:
        """Counts of groups added up to those of labels, along an axis; texts without a label are left out."""
        kept = np.moveaxis(counts_UG, axis, 0)[: self.groups]
        summed = kept.reshape(len(self.labels), self._each, *kept.shape[1:]).sum(1)
        return np.moveaxis(summed, 0, axis)

    def label_of(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of the label of each group; -1 stays."""
        return np.where(groups < 0, -1, groups // self._each)

    def members(self, word: str | None, dataset: str) -> list[int]:
        """The groups that a word names: a label, ``correct`` or ``wrong``; None for all texts.

        Raises:
            InputError: for another word.
        """
        every = list(range(self.groups))
        if word is None:
            return [*every, self.groups]
        if self.by_answer and word in (CORRECT, WRONG):
            return every[(word == WRONG) :: 2]
        if word not in self.labels:
            raise unknown(f"label of {dataset}", word, [*self.labels, *((CORRECT, WRONG) if self.by_answer else ())])
        first = self.labels.index(word) * self._each
        return every[first : first + self._each]


class Side(NamedTuple):
    """One side of a contrast: a data set, or a group of its texts (None for all)."""

    dataset: str
    group: str | None

    def __str__(self) -> str:
        return self.dataset if self.group is None else f"{self.dataset}:{self.group}"


class Counted(NamedTuple):
    """A data set after its pass."""

    found: Collected
    grouping: Grouping


def side(word: str, datasets: Sequence[str]) -> Side:
    """What a word of ``--contrast`` names.

    Raises:
        InputError: if its data set is not among those that are read.
    """
    if word in datasets:  # a path may have a colon
        return Side(word, None)
    dataset, colon, group = word.rpartition(":")
    if not colon or dataset not in datasets:
        raise unknown("data set of --contrast", dataset or word, datasets)
    return Side(dataset, group)


def asks_for_answers(sides: Sequence[tuple[Side, Side]], dataset: str) -> bool:
    """Whether a contrast is of right and wrong answers on a data set."""
    return any(each.dataset == dataset and each.group in (CORRECT, WRONG) for pair in sides for each in pair)


def usual(text_sets: Mapping[str, TextSet]) -> list[tuple[Side, Side]]:
    """The contrasts that are made unless others are asked for.

    The first data set against each other one, if the same part of both is counted: prompts differ from answers, and
    last tokens from all tokens, whatever they are about. And the two labels of those with two.
    """
    (first, of_first), *others = text_sets.items()
    pairs = [(Side(name, None), Side(first, None)) for name, other in others if other.part == of_first.part]
    return pairs + [
        (Side(name, each.labels[-1]), Side(name, each.labels[0]))
        for name, each in text_sets.items()
        if len(each.labels) == 2
    ]


def contrasted(pair: tuple[Side, Side], counted: Mapping[str, Counted]) -> Contrast:
    """Every unit's mean activation on the texts of two groups.

    Raises:
        InputError: if a group is no label of its data set, or has no texts.
    """
    bits = min(counted[each.dataset].found.text_bins.bits for each in pair)  # data sets of fewer labels have more
    counts_a_UE, counts_b_UE = (_counts(each, counted[each.dataset], bits) for each in pair)
    for each, counts_UE in zip(pair, (counts_a_UE, counts_b_UE), strict=True):
        if not counts_UE[0].sum():
            raise InputError(f"--contrast {each}: it has no texts. Take more with --max-texts, or another group.")
    found = contrast(counts_a_UE, counts_b_UE)
    return Contrast(
        a=str(pair[0]),
        b=str(pair[1]),
        texts_a=int(counts_a_UE[0].sum()),
        texts_b=int(counts_b_UE[0].sum()),
        auc=found.auc_U,
        p=found.p_U,
        q=false_discovery_rate(found.p_U),
        firing_a=_fired(pair[0], counted[pair[0].dataset]),
        firing_b=_fired(pair[1], counted[pair[1].dataset]),
    )


def _counts(each: Side, counted: Counted, bits: int) -> Counts:
    members = counted.grouping.members(each.group, each.dataset)
    return merged(np.asarray(counted.found.text_histogram_UGE[:, members].sum(1)), counted.found.text_bins, bits)


def _fired(each: Side, counted: Counted) -> np.ndarray:
    members = counted.grouping.members(each.group, each.dataset)
    return np.asarray(counted.found.fired_UG[:, members].sum(1) / counted.found.texts_G[members].sum())
