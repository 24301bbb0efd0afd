"""Groups of texts against each other: which units tell them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from monolora.errors import InputError, unknown
from monolora.eval.explain.grouping import CORRECT, WRONG, Grouping
from monolora.eval.explain.records import Contrast, Counts
from monolora.eval.explain.text_sets import TextSet
from monolora.explain.bins import merged
from monolora.explain.collected import Collected
from monolora.explain.contrast import contrast
from monolora.explain.rates import false_discovery_rate


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
