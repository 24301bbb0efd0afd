"""The features of a data set, from what a pass over it counted.

Texts are counted in groups, by label and, if requested, by whether the model answers rightly; contrasts compare
groups. Shapes: G groups (the last one has the texts without a label), U units, E bins, S ends; K labels of
counts, contexts of a unit; W tokens of a context.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from monolora.errors import InputError, unknown
from monolora.eval.explain.records import Context, Contrast, Counts, DatasetFeatures, End, Floats, Partner, TokenMean
from monolora.eval.explain.text_sets import TextSet
from monolora.explain.contexts import BEFORE, NO_TOKEN, Contexts
from monolora.explain.histograms import Bins, contrast, merged
from monolora.explain.labels import consistency_by_chance, mutual_information, semantic_consistency
from monolora.explain.unit_statistics import BITS, Collected, TopTokens
from monolora.stats import false_discovery_rate

CORRECT, WRONG = "correct", "wrong"
_MERGED = 2  # bins of the pass in one of the histogram's: half an octave


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
        """Number of groups, without that of the texts that have no label."""
        return len(self.labels) * self._groups_per_label

    @property
    def _groups_per_label(self) -> int:
        return 2 if self.by_answer else 1

    def of_texts(self, labels: Sequence[int], is_right: Sequence[bool]) -> list[int]:
        """The group of each text.

        Args:
            labels: index of each one's label; -1 for none.
            is_right: whether each answer is right; empty unless ``by_answer``.
        """
        if not self.by_answer:
            return list(labels)
        return [label * 2 + (not right) for label, right in zip(labels, is_right, strict=True)]

    def by_label(self, counts_UG: NDArray[np.int64], axis: int) -> NDArray[np.int64]:
        """Counts summed from groups to labels along an axis; texts without a label are left out."""
        counts = np.moveaxis(counts_UG, axis, 0)[: self.groups]
        summed = counts.reshape(len(self.labels), self._groups_per_label, *counts.shape[1:]).sum(1)
        return np.moveaxis(summed, 0, axis)

    def label_of(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index of the label of each group; -1 stays."""
        return np.where(groups < 0, -1, groups // self._groups_per_label)

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
        first = self.labels.index(word) * self._groups_per_label
        return every[first : first + self._groups_per_label]


class Side(NamedTuple):
    """One side of a contrast: a data set, or a group of its texts (None for all)."""

    dataset: str
    group: str | None

    def __str__(self) -> str:
        return self.dataset if self.group is None else f"{self.dataset}:{self.group}"


class Counted(NamedTuple):
    """A data set after its pass."""

    statistics: Collected
    grouping: Grouping


def side(word: str, datasets: Sequence[str]) -> Side:
    """The side that a word of ``--contrast`` names.

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
    return any(side.dataset == dataset and side.group in (CORRECT, WRONG) for pair in sides for side in pair)


def usual(text_sets: Mapping[str, TextSet]) -> list[tuple[Side, Side]]:
    """The default contrasts.

    The first data set against each other one, if the same part of both is counted: prompts differ from answers, and
    last tokens from all tokens, whatever they are about. And the two labels of those with two.
    """
    (first, of_first), *others = text_sets.items()
    pairs = [(Side(name, None), Side(first, None)) for name, other in others if other.part == of_first.part]
    return pairs + [
        (Side(name, text_set.labels[-1]), Side(name, text_set.labels[0]))
        for name, text_set in text_sets.items()
        if len(text_set.labels) == 2
    ]


def contrasted(pair: tuple[Side, Side], counted: Mapping[str, Counted]) -> Contrast:
    """Every unit's mean activation on the texts of two groups.

    Raises:
        InputError: if a group is no label of its data set, or has no texts.
    """
    bits = min(counted[side.dataset].statistics.text_bins.bits for side in pair)  # data sets of fewer labels have more
    counts_a_UE, counts_b_UE = (_counts(side, counted[side.dataset], bits) for side in pair)
    for side, counts_UE in zip(pair, (counts_a_UE, counts_b_UE), strict=True):
        if not counts_UE[0].sum():
            raise InputError(f"--contrast {side}: it has no texts. Take more with --max-texts, or another group.")
    test = contrast(counts_a_UE, counts_b_UE)
    return Contrast(
        a=str(pair[0]),
        b=str(pair[1]),
        texts_a=int(counts_a_UE[0].sum()),
        texts_b=int(counts_b_UE[0].sum()),
        auc=test.auc_U,
        p=test.p_U,
        q=false_discovery_rate(test.p_U),
        firing_a=_fired(pair[0], counted[pair[0].dataset]),
        firing_b=_fired(pair[1], counted[pair[1].dataset]),
    )


def _counts(side: Side, counted: Counted, bits: int) -> Counts:
    statistics, grouping = counted
    members = grouping.members(side.group, side.dataset)
    return merged(np.asarray(statistics.text_histogram_UGE[:, members].sum(1)), statistics.text_bins, bits)


def _fired(side: Side, counted: Counted) -> np.ndarray:
    members = counted.grouping.members(side.group, side.dataset)
    return np.asarray(counted.statistics.fired_UG[:, members].sum(1) / counted.statistics.texts_G[members].sum())


class TokenTexts:
    """Token ids as text; joined, they read as the text does.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.of = cache(self._of)

    def _of(self, token_id: int) -> str:
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if isinstance(piece, str) and "\u2581" in piece:  # SentencePiece's space, which decoding drops at the beginning
            return piece.replace("\u2581", " ")
        return str(self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False))


def dataset_features(
    statistics: Collected, text_set: TextSet, grouping: Grouping, groups: list[int], tokens: TokenTexts
) -> DatasetFeatures:
    """The features of a data set.

    Args:
        statistics: of the pass over it.
        text_set: the data set.
        grouping: of its texts.
        groups: the group of each text.
        tokens: the tokenizer's tokens as text.
    """
    texts_K = grouping.by_label(statistics.texts_G, 0)
    strongest = min(statistics.strongest_SUM.shape[2], int(texts_K.sum()))
    edges, histogram_UE = shown_histogram(statistics.histogram_UE, len(statistics.contexts) == 2)
    label_of_text = [
        None if index < 0 else text_set.labels[index] for index in grouping.label_of(np.array(groups)).tolist()
    ]
    return DatasetFeatures(
        name=text_set.name,
        is_gated=text_set.is_safety,
        texts=int(statistics.texts_G.sum()),
        tokens=statistics.tokens,
        labels=dict(zip(text_set.labels, texts_K.tolist(), strict=True)),
        unlabelled=int(statistics.texts_G[-1]),
        note=text_set.note,
        strongest=strongest,
        firing=statistics.firing,
        mean=statistics.mean,
        std=statistics.std,
        max=statistics.max,
        min=statistics.min,
        effect=statistics.effect,
        edges=edges,
        histogram_UE=histogram_UE,
        **_of_labels(statistics, grouping, texts_K, strongest),
        partners=_partners(statistics),
        ends=[
            End(
                _contexts(contexts, label_of_text, tokens),
                _token_means(top, tokens),
                *strongest_labels(labels_UM[:, :strongest], text_set.labels),
            )
            for contexts, top, labels_UM in zip(
                statistics.contexts, statistics.tokens_by_end, grouping.label_of(statistics.strongest_SUM), strict=True
            )
        ],
    )


def _of_labels(statistics: Collected, grouping: Grouping, texts_K: Counts, strongest: int) -> dict[str, Any]:
    """The fields of :class:`DatasetFeatures` about labels; NaN where no text has one."""
    if not strongest:
        nothing_U = np.full(len(statistics.firing), np.nan)
        return {"chance": np.nan, "consistency": nothing_U, "information": nothing_U, "information_q": nothing_U}
    information = mutual_information(grouping.by_label(statistics.text_histogram_UGE, 1))
    return {
        "chance": consistency_by_chance(texts_K, strongest),
        "consistency": semantic_consistency(grouping.by_label(statistics.fired_UG, 1)),
        "information": information.bits_U,
        "information_q": false_discovery_rate(information.p_U),
    }


def shown_histogram(counts_UE: Counts, signed: bool) -> tuple[Floats, Counts]:
    """Edges and counts by half octaves, from the first bin with tokens to the last, without the bin of zeros."""
    bins = Bins(signed, BITS)
    zero = bins.zero
    outer = bins.edges()[zero + 1 + _MERGED :: _MERGED]  # of the bins above 0, in pairs from the inside
    positive = counts_UE[:, zero + 1 :].reshape(len(counts_UE), bins.sizes // _MERGED, _MERGED).sum(2)
    edges, merged = np.concatenate([[0.0], outer]), positive
    if signed:
        negative = counts_UE[:, :zero].reshape(len(counts_UE), bins.sizes // _MERGED, _MERGED).sum(2)
        edges, merged = np.concatenate([-outer[::-1], edges]), np.concatenate([negative, positive], 1)
    filled = np.flatnonzero(merged.sum(0))
    if not len(filled):
        return np.array([0.0, 1.0]), np.zeros((len(counts_UE), 1), np.int64)
    return edges[filled[0] : filled[-1] + 2], merged[:, filled[0] : filled[-1] + 1]


def _partners(statistics: Collected) -> list[list[Partner]]:
    return [
        [Partner(unit, r) for unit, r in zip(units, rs, strict=True) if unit >= 0]
        for units, rs in zip(statistics.partner_UP.tolist(), statistics.correlation_UP.tolist(), strict=True)
    ]


def strongest_labels(labels_UM: NDArray[np.int64], names: tuple[str, ...]) -> tuple[Floats, list[str | None]]:
    """Share and name of the most frequent label of each unit's strongest texts; NaN and None where texts are missing.

    Fewer texts than M would have a higher share by chance alone.
    """
    units = len(labels_UM)
    if not names or not labels_UM.shape[1]:
        return np.full(units, np.nan), [None] * units
    counts_UK = (labels_UM[:, :, None] == np.arange(len(names))).sum(1)
    is_whole_U = np.asarray((labels_UM >= 0).all(1))
    share_U = np.where(is_whole_U, counts_UK.max(1) / labels_UM.shape[1], np.nan)
    most_U = counts_UK.argmax(1)
    return share_U, [names[k] if whole else None for k, whole in zip(most_U.tolist(), is_whole_U.tolist(), strict=True)]


def _token_means(top: TopTokens, tokens: TokenTexts) -> list[list[TokenMean]]:
    return [
        [TokenMean(tokens.of(i), mean, times) for i, mean, times in zip(*of_unit, strict=True) if i >= 0]
        for of_unit in zip(top.ids_UN.tolist(), top.mean_UN.tolist(), top.count_UN.tolist(), strict=True)
    ]


class _Peak(NamedTuple):
    """A text's strongest activation of a unit, as a pass keeps it."""

    value: float
    number: int
    position: int
    length: int
    ids_W: list[int]
    activation_W: list[float]


def _contexts(contexts: Contexts, labels: list[str | None], tokens: TokenTexts) -> list[list[Context]]:
    columns = (
        contexts.value_UK * contexts.sign,
        contexts.number_UK,
        contexts.position_UK,
        contexts.length_UK,
        contexts.ids_UKW,
        contexts.activation_UKW,
    )
    units: Iterator[list[Any]] = map(list, zip(*(column.cpu().tolist() for column in columns), strict=True))
    peaks = (itertools.starmap(_Peak, zip(*of_unit, strict=True)) for of_unit in units)
    return [[_context(peak, labels, tokens) for peak in of_unit if peak.number >= 0] for of_unit in peaks]


def _context(peak: _Peak, labels: list[str | None], tokens: TokenTexts) -> Context:
    filled = [index for index, token_id in enumerate(peak.ids_W) if token_id != NO_TOKEN]
    return Context(
        text=peak.number,
        label=labels[peak.number],
        value=peak.value,
        peak=BEFORE - filled[0],
        tokens=[tokens.of(peak.ids_W[index]) for index in filled],
        activations=[peak.activation_W[index] for index in filled],
        cut_before=peak.position - (BEFORE - filled[0]) > 0,
        cut_after=peak.position + filled[-1] - BEFORE < peak.length - 1,
    )


def context_prefixes(contexts: Contexts, most: int) -> list[list[tuple[int, int]]]:
    """By unit, text number and prefix length up to the peak of its strongest contexts."""
    numbers, positions = contexts.number_UK[:, :most].tolist(), contexts.position_UK[:, :most].tolist()
    return [
        [(number, position + 1) for number, position in zip(*of_unit, strict=True) if number >= 0]
        for of_unit in zip(numbers, positions, strict=True)
    ]


def merged_contexts(ends: list[Contexts], most: int) -> list[list[tuple[int, int]]]:
    """:func:`context_prefixes` of the end whose peak is the stronger one, unit by unit."""
    best = torch.stack([end.value_UK[:, 0] for end in ends]).argmax(0).tolist()
    by_end = [context_prefixes(end, most) for end in ends]
    return [by_end[end][unit] for unit, end in enumerate(best)]
