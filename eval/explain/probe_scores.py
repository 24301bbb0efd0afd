"""Scores of what units tell of labels: sparse probing, and targeted probe perturbation.

Shapes: N texts, M test texts, U units, S shares of tokens on which units fire at most, D draws of random units; K units
of a probe, C labels of all data sets, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolora.eval.explain.records import Floats, Score
from monolora.eval.explain.text_sets import TextSet, spread
from monolora.eval.explain.unit_reader import SHARES, Sample, UnitReader
from monolora.explain.probing import (
    Flags,
    Probe,
    class_weights,
    mean_differences,
    single_unit_logits,
    standardised,
    training_half,
)
from monolora.stats import SEED, Estimate, bootstrap, resampled_estimate, resampled_means
from monolora.terminal import STDERR

PROBE, TARGETED = "probe", "targeted"  # kinds of scores

SELECTED = (1, 2, 5)  # units of a probe, beside all
_RESAMPLES = 1000  # where many probes are resampled
FEWEST = 8  # texts with a label, and without it, half of which are for training


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Mean activations on the labelled texts of a data set.

    Attributes:
        name: of the data set.
        labels: their names.
        group_N: index of each text's label.
        is_training_N: the half that units are selected and probes are fitted on.
        own_SNU: of the adapter's units, at each of :data:`SHARES`.
        random_DSNU: of random ones.
        sample: of the tokens of the training half.
    """

    name: str
    labels: tuple[str, ...]
    group_N: NDArray[np.int64]
    is_training_N: Flags
    own_SNU: Floats
    random_DSNU: Floats
    sample: Sample

    def concepts(self) -> Iterator[tuple[str, Flags]]:
        """See :func:`concepts_of`."""
        return concepts_of(self.labels, self.group_N)


def concepts_of(labels: Sequence[str], group_N: NDArray[np.int64]) -> Iterator[tuple[str, Flags]]:
    """Labels that enough texts have and lack, each with the texts that have it; of two labels the last."""
    for index, label in list(enumerate(labels))[1 if len(labels) == 2 else 0 :]:
        has_label_N = group_N == index
        if FEWEST <= has_label_N.sum() <= len(has_label_N) - FEWEST:
            yield label, has_label_N


def read_labelled(reader: UnitReader, text_set: TextSet, tokenizer: Any, most: int, seed: int = SEED) -> Reading | None:
    """Read the units on the labelled texts of a data set; None, and a line that says so, where too few have a label.

    Args:
        reader: of the units.
        text_set: the data set.
        tokenizer: of the model.
        most: texts, evenly over all that are labelled.
        seed: of the halves.
    """
    labelled = [number for number, group in enumerate(text_set.groups) if group >= 0]
    numbers = [labelled[index] for index in spread(len(labelled), most)]
    group_N = np.array([text_set.groups[number] for number in numbers], dtype=np.int64)
    if not any(concepts_of(text_set.labels, group_N)):
        STDERR.print(f"{text_set.name} is not probed: no label that {FEWEST} texts have and {FEWEST} lack.")
        return None
    is_training_N = training_half(group_N, seed)
    chosen = set(numbers)
    texts = [text for text in text_set.texts(tokenizer, text_set.groups) if text.number in chosen]
    sample = reader.sample([text for text, is_used in zip(texts, is_training_N, strict=True) if is_used])
    own_SNU, *random_SNU = reader.text_means(text_set.name, texts, sample)
    return Reading(
        name=text_set.name,
        labels=text_set.labels,
        group_N=group_N,
        is_training_N=is_training_N,
        own_SNU=own_SNU,
        random_DSNU=np.stack(random_SNU),
        sample=sample,
    )


def probe_scores(readings: Sequence[Reading]) -> list[Score]:
    """Sparse probing on every label of every data set: balanced accuracy in percent, on the test half."""
    return [score for reading in readings for concept in reading.concepts() for score in _probed(reading, *concept)]


def _probed(reading: Reading, label: str, has_label_N: Flags) -> Iterator[Score]:
    is_test_N = ~reading.is_training_N
    units = reading.own_SNU.shape[2]
    counts = [*(count for count in SELECTED if count < units), units]
    cases = [(s, count) for s in range(len(SHARES)) for count in counts]

    def right(x_SNU: Floats) -> Floats:
        rows = []
        for x_NU in x_SNU:
            z_NU = standardised(x_NU, reading.is_training_N)
            order_U = np.argsort(-np.abs(mean_differences(z_NU, has_label_N, reading.is_training_N)), kind="stable")
            for count in counts:
                z_NK = z_NU[:, order_U[:count]]
                probe = Probe(z_NK, has_label_N, reading.is_training_N)
                rows.append(100.0 * probe.is_right(z_NK, has_label_N)[is_test_N])
        return np.stack(rows)

    own = right(reading.own_SNU)
    random = np.mean([right(x_SNU) for x_SNU in reading.random_DSNU], axis=0)
    weights_M = class_weights(has_label_N[is_test_N])
    for (s, count), estimates in zip(cases, compared(own, random, weights_M), strict=True):
        selected = None if count == units else count
        yield Score(PROBE, reading.name, label, selected, SHARES[s], int(is_test_N.sum()), *estimates)


def perturbation_scores(readings: Sequence[Reading]) -> list[Score]:
    """Targeted probe perturbation (Karvonen et al. 2025) over all labels of all data sets, in percentage points.

    A probe on all units for each label. Units are selected that give a label's probe most of its difference between the
    classes (weight times difference of means), and set to 0. The score is how much the accuracy of this probe falls,
    less how much that of the other labels' probes falls, on average.

    Returns:
        Nothing for fewer than two labels.
    """
    concepts = [(reading, *concept) for reading in readings for concept in reading.concepts()]
    if len(concepts) < 2:
        return []
    units = readings[0].own_SNU.shape[2]
    names = ", ".join(reading.name for reading in readings)
    texts = sum(int((~reading.is_training_N).sum()) for reading in readings)
    scores = []
    for count in (count for count in SELECTED if count < units):
        for s, share in enumerate(SHARES):
            own_R, *random_R = (
                _perturbed([(reading, x_SNU[s], has_label_N) for (reading, _, has_label_N), x_SNU in of_draw], count)
                for of_draw in _by_draw(concepts)
            )
            mean_R = np.mean(random_R, axis=0)
            estimates = map(resampled_estimate, (own_R, mean_R, own_R - mean_R))
            scores.append(Score(TARGETED, names, f"{len(concepts)} labels", count, share, texts, *estimates))
    return scores


_Concept = tuple[Reading, str, Flags]


def _by_draw(concepts: Sequence[_Concept]) -> Iterator[list[tuple[_Concept, Floats]]]:
    """Activations for each concept: of own units, then of each draw of random ones."""
    yield [(concept, concept[0].own_SNU) for concept in concepts]
    for draw in range(len(concepts[0][0].random_DSNU)):
        yield [(concept, concept[0].random_DSNU[draw]) for concept in concepts]


def _perturbed(concepts: Sequence[tuple[Reading, Floats, Flags]], count: int) -> Floats:
    """The score on the test texts, then on resamples of them, ``(1 + R,)``."""
    selected, fitted, fallen = [], [], []
    for reading, x_NU, has_label_N in concepts:
        z_NU = standardised(x_NU, reading.is_training_N)
        probe = Probe(z_NU, has_label_N, reading.is_training_N)
        share_U = probe.weight_K * mean_differences(z_NU, has_label_N, reading.is_training_N)
        selected.append(np.argsort(-share_U, kind="stable")[:count])
        off_U = standardised(np.vstack([x_NU, np.zeros(x_NU.shape[1])]), np.append(reading.is_training_N, False))[-1]
        fitted.append((probe, z_NU, off_U))
    for (reading, _, has_label_N), (probe, z_NU, off_U) in zip(concepts, fitted, strict=True):
        is_test_N = ~reading.is_training_N
        right_N = probe.is_right(z_NU, has_label_N)
        falls = []
        for units in selected:
            without_NU = z_NU.copy()
            without_NU[:, units] = off_U[units]
            falls.append(100.0 * (right_N.astype(float) - probe.is_right(without_NU, has_label_N))[is_test_N])
        weights_M = class_weights(has_label_N[is_test_N])
        falls_CM = np.stack(falls)
        fallen.append(np.column_stack([falls_CM @ weights_M, resampled_means(falls_CM, weights_M, _RESAMPLES)]))
    fallen_CCR = np.stack(fallen)  # of which probe, by whose units
    is_own_CC = np.eye(len(concepts), dtype=bool)
    return np.asarray(fallen_CCR[is_own_CC].mean(0) - fallen_CCR[~is_own_CC].mean(0))


def compared(own_KM: Floats, random_KM: Floats, weights_M: Floats) -> list[tuple[Estimate | None, ...]]:
    """By row, the estimates of both and of their difference, by the bootstrap over texts."""
    estimates = bootstrap(np.concatenate([own_KM, random_KM, own_KM - random_KM]), weights_M)
    count = len(own_KM)
    return list(zip(estimates[:count], estimates[count : 2 * count], estimates[2 * count :], strict=True))


class UnitProbes(NamedTuple):
    """The probe on each unit alone: balanced accuracy on the test half, and the label that it tells."""

    accuracy: Floats
    label: list[str]


def unit_probes(reading: Reading) -> UnitProbes:
    """For each unit the probe of the label that it tells best on the training half."""
    labels: list[str] = []
    training: list[Floats] = []
    test: list[Floats] = []
    z_NU = standardised(reading.own_SNU[0], reading.is_training_N)
    for label, has_label_N in reading.concepts():
        logits_NU = single_unit_logits(z_NU, has_label_N, reading.is_training_N)
        right_NU = (logits_NU > 0) == has_label_N[:, None]
        for half, is_in_N in ((training, reading.is_training_N), (test, ~reading.is_training_N)):
            half.append(class_weights(has_label_N[is_in_N]) @ right_NU[is_in_N])
        labels.append(label)
    best_U = np.argmax(training, axis=0)
    return UnitProbes(np.take_along_axis(np.stack(test), best_U[None], 0)[0], [labels[best] for best in best_U])
