"""Groups of texts by label and by right and wrong answers."""

from __future__ import annotations

import numpy as np
import pytest

from monolora.errors import InputError
from monolora.eval.explain.features import Grouping


def test_without_answers_groups_are_labels() -> None:
    grouping = Grouping(("a", "b"), by_answer=False)
    assert grouping.of_texts([0, 1, -1], []) == [0, 1, -1]
    counts = np.arange(6).reshape(2, 3)
    assert grouping.by_label(counts, 1).tolist() == [[0, 1], [3, 4]]
    assert grouping.label_of(np.array([1, 0, -1])).tolist() == [1, 0, -1]
    assert grouping.members("b", "set") == [1]
    assert grouping.members(None, "set") == [0, 1, 2]
    with pytest.raises(InputError, match="Unknown label of set"):
        grouping.members("correct", "set")


def test_with_answers_labels_and_verdicts_can_be_added_up() -> None:
    """Against counting texts one by one."""
    random = np.random.default_rng(0)
    labels, right = random.integers(-1, 3, 200), random.integers(0, 2, 200).astype(bool)
    grouping = Grouping(("a", "b", "c"), by_answer=True)
    groups = np.array(grouping.of_texts(labels.tolist(), right.tolist()))
    groups[labels < 0] = grouping.groups  # where texts without a label are counted
    counts = np.bincount(groups, minlength=grouping.groups + 1)
    assert grouping.by_label(counts, 0).tolist() == [(labels == k).sum() for k in range(3)]
    for word, chosen in (("correct", right), ("wrong", ~right), ("b", labels == 1)):
        assert counts[grouping.members(word, "set")].sum() == (chosen & (labels >= 0)).sum()
    assert counts[grouping.members(None, "set")].sum() == 200
    kept = grouping.of_texts(labels.tolist(), right.tolist())
    assert grouping.label_of(np.array(kept))[labels >= 0].tolist() == labels[labels >= 0].tolist()
