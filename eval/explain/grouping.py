"""How texts are counted apart: by label, and by whether the model answers rightly where that is asked for.

Shapes: G groups (the last one has the texts without a label), U units, K labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monolora.errors import unknown

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
