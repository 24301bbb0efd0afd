"""The measurements of an adapter's units, from which the page and ``features.parquet`` are made.

Lists "by unit" have an entry for each unit, in the order of ``Explained.units``. Shapes: U units, E bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolora.stats import Estimate
from monolora.units import UnitName

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


class Context(NamedTuple):
    """A text's highest (or lowest) activation of a unit, with the tokens around it.

    Attributes:
        text: number of the text in its data set, from 0.
        label: of the text; None where it has none.
        value: the activation at the peak.
        peak: index of the peak among ``tokens``.
        tokens: as text, in their order; joined they read as the text does.
        activations: of the unit, one a token; NaN for tokens that were not measured (a beginning that all texts share).
        cut_before: whether the text begins before the first token.
        cut_after: whether it continues after the last.
    """

    text: int
    label: str | None
    value: float
    peak: int
    tokens: Sequence[str]
    activations: Sequence[float]
    cut_before: bool
    cut_after: bool


class TokenMean(NamedTuple):
    """A token and the mean activation of a unit over the ``times`` that it came."""

    token: str
    mean: float
    times: int


class Partner(NamedTuple):
    """Another unit, by index in ``Explained.units``, and the correlation of the two activations over tokens."""

    unit: int
    correlation: float


class End(NamedTuple):
    """One end of the units' activations: the highest; of signed units there is a second, the lowest.

    Attributes:
        contexts: by unit, the texts with the strongest peaks, strongest first; may be empty (a dead unit).
        tokens: by unit, the tokens with the strongest mean activation, strongest first.
        consistency: by unit, share of the most frequent label among the texts that excite it most (those with the
            strongest mean activation); NaN where it is unavailable.
        label: by unit, that label; None where unavailable.
    """

    contexts: list[list[Context]]
    tokens: list[list[TokenMean]]
    consistency: Floats
    label: list[str | None]


@dataclass(frozen=True, kw_only=True)
class DatasetFeatures:
    """The units on the texts of one data set.

    Attributes:
        name: of the data set.
        is_gated: whether its texts are shown only after a click (they may be harmful).
        texts: how many.
        tokens: how many were counted.
        labels: names, and how many texts have each; empty for none.
        unlabelled: texts without one of them.
        note: what else a reader must know; may be empty.
        strongest: how many texts ``End.consistency`` is of.
        chance: what ``End.consistency`` is on average for that many texts drawn at random; NaN without labels.
        firing: share of tokens on which the unit is not 0.
        mean, std, max, min: of its activations over all tokens.
        effect: mean over tokens of the norm of what the unit adds to its module's output, divided by the mean norm of
            that output.
        edges: E + 1 edges of the histogram's bins, ascending; exact zeros are in no bin.
        histogram_UE: tokens by bin.
        consistency: of labels among the texts on which the unit fires at all (|mean activation| > 1e-5); NaN for a
            dead one or without labels (semantic consistency, section 4.1 of the paper).
        information: mutual information of the text's mean activation (in tenths) and its label, in bits; NaN
            without labels.
        information_q: false discovery rate of that information being above 0; NaN without labels.
        partners: by unit, the units whose activations go most with its own, strongest correlation first.
        ends: one, or two of signed units (highest, then lowest).
        probe: balanced accuracy of a probe on the unit alone, on texts that it was not fitted on; None if not
            scored.
        probe_label: the label that the probe is of.
        faithfulness: correlation over prompts of the unit's activations with the effect of taking it out (square root
            of the KL of the next token); NaN where that is unknown, None if not scored.
    """

    name: str
    is_gated: bool
    texts: int
    tokens: int
    labels: dict[str, int]
    unlabelled: int
    note: str
    strongest: int
    chance: float
    firing: Floats
    mean: Floats
    std: Floats
    max: Floats
    min: Floats
    effect: Floats
    edges: Floats
    histogram_UE: Counts
    consistency: Floats
    information: Floats
    information_q: Floats
    partners: list[list[Partner]]
    ends: list[End]
    probe: Floats | None = None
    probe_label: list[str] | None = None
    faithfulness: Floats | None = None


class UnitLogits(NamedTuple):
    """Which next tokens a unit makes likelier and less likely.

    Attributes:
        how: ``direct`` (its output direction through the unembedding) or ``ablation`` (the mean change of the logits
            after its strongest contexts when it is taken out, negated).
        raised: tokens and by how much, largest first.
        lowered: likewise, values below 0, most negative first.
    """

    how: str
    raised: list[tuple[str, float]]
    lowered: list[tuple[str, float]]


class Measure(NamedTuple):
    """A measure that changes when a unit is ablated.

    Attributes:
        id: as ``sst2.accuracy``.
        title: for people, as ``accuracy``.
        unit: as ``pp`` or ``nats``; may be empty.
        dataset: of the prompts.
        prompts: how many.
        adapted: the measure of the adapted model with all its units; NaN for a difference from it (KL).
        is_tested: whether "no change on average" can be tested. KL is never below 0, so it cannot.
    """

    id: str
    title: str
    unit: str
    dataset: str
    prompts: int
    adapted: float
    is_tested: bool = True


class Change(NamedTuple):
    """A change, ablated minus adapted.

    Attributes:
        value: the mean over prompts.
        low, high: its 95 % confidence interval; NaN where there is none.
        p: two-sided, of no change on average (bootstrap over prompts); NaN where it cannot be tested.
        q: false discovery rate (Benjamini and Hochberg) over the units that were taken out one at a time; NaN where
            there is no ``p``, and for all units together, which is one test and not one of many.
    """

    value: float
    low: float
    high: float
    p: float = math.nan
    q: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Ablations:
    """The effects of taking units out.

    Attributes:
        measures: what was measured.
        changes: by index in ``Explained.units`` for those ablated one at a time, one change a measure.
        everything: the changes with all units taken out together; empty where these were not.
        kl: by data set, the KL of the next token without each of these units, by prompt, shape ``(K, P)``.
    """

    measures: list[Measure] = field(default_factory=list)
    changes: dict[int, list[Change]] = field(default_factory=dict)
    everything: list[Change] = field(default_factory=list)
    kl: Mapping[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Units in two groups of texts.

    Attributes:
        a, b: names of the groups, as ``beavertails`` or ``xstest:unsafe``.
        texts_a, texts_b: how many texts each has.
        auc: by unit, chance that a text of ``a`` has a higher mean activation than one of ``b`` (ties half).
        p, q: of the Mann-Whitney test, and its false discovery rate over all units (Benjamini and Hochberg).
        firing_a, firing_b: share of texts on which the unit fires (|mean activation| > 1e-5).
    """

    a: str
    b: str
    texts_a: int
    texts_b: int
    auc: Floats
    p: Floats
    q: Floats
    firing_a: Floats
    firing_b: Floats


class Score(NamedTuple):
    """A score of all units together, beside that of random units.

    Attributes:
        kind: which one, a key of :data:`monolora.eval.explain.score_report.KINDS`.
        dataset: the texts' name.
        of: what is told or measured on it: a label, or a measure.
        units: how many of the units it is of, those selected for it; None for all.
        share: of the tokens, on which each unit fires at most; 1 for the units as trained.
        texts: that it is measured on.
        own, random, difference: of the adapter's units, of random ones, and of the first minus the second; None where
            there is none.
    """

    kind: str
    dataset: str
    of: str
    units: int | None
    share: float
    texts: int
    own: Estimate | None
    random: Estimate | None
    difference: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Explained:
    """An adapter's explanation.

    Attributes:
        title: of the page.
        adapter: its folder.
        method: ``MonoLoRA`` or ``LoRA``.
        model: the base.
        is_signed: whether activations can be negative, so that a unit has two ends.
        units: their names.
        datasets: at least one.
        logits: by unit; None where not measured.
        ablations: empty if none was requested.
        contrasts: may be empty.
        origin: settings, versions and fingerprints of the explanation.
        is_prunable: whether ``monolora prune`` can take single units out.
        scores: of all units together; empty if none was requested.
    """

    title: str
    adapter: str
    method: str
    model: str
    is_signed: bool
    units: list[UnitName]
    datasets: list[DatasetFeatures]
    logits: list[UnitLogits | None]
    ablations: Ablations
    contrasts: list[Contrast]
    origin: Mapping[str, Any]
    is_prunable: bool = True
    scores: list[Score] = field(default_factory=list)
