"""``monolora explain --score``: scores of an adapter's units that need no judge, each beside that of random units.

Sparse probing: how well the best one, two and five units tell a label, against all of them, at several sparsities.

Shapes: N texts, M test texts, T tokens, U units, S shares of tokens on which units fire at most, D draws of random
units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from monolora.eval.explain.records import Floats, Score
from monolora.eval.explain.text_sets import TextSet, spread
from monolora.explain.collector import units_by_text
from monolora.explain.contexts import Text
from monolora.explain.probing import (
    Flags,
    Probe,
    class_weights,
    mean_differences,
    single_unit_logits,
    standardised,
    training_half,
)
from monolora.explain.random_units import (
    fired_share,
    fired_share_thresholds,
    own_thresholds,
    random_units,
    shrunk,
)
from monolora.inference import Inference, evaluating
from monolora.stats import SEED, Estimate, bootstrap
from monolora.terminal import STDERR, tracked
from monolora.units import Layout

PROBE = "probe"

SHARES = (1.0, 0.3, 0.1, 0.03, 0.01)  # of tokens on which a unit fires at most; 1 is as trained
SELECTED = (1, 2, 5)  # units of a probe, beside all
DRAWS = 3  # of random units
FEWEST = 8  # texts with a label, and without it, half of which are for training
_SAMPLE = 4096  # tokens of the training half from which thresholds are taken


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
    """

    name: str
    labels: tuple[str, ...]
    group_N: NDArray[np.int64]
    is_training_N: Flags
    own_SNU: Floats
    random_DSNU: Floats

    def concepts(self) -> Iterator[tuple[str, Flags]]:
        """Labels that enough texts have and lack, each with the texts that have it; of two labels the last."""
        for index, label in list(enumerate(self.labels))[1 if len(self.labels) == 2 else 0 :]:
            has_label_N = self.group_N == index
            if FEWEST <= has_label_N.sum() <= len(has_label_N) - FEWEST:
                yield label, has_label_N


def read_units(
    inference: Inference, layout: Layout, text_sets: Mapping[str, TextSet], most: int, seed: int = SEED
) -> list[Reading]:
    """Read the adapter's and random units on every data set with labels.

    Args:
        inference: the adapted model.
        layout: of its units.
        text_sets: the data sets; one without enough labelled texts is left out, which is printed.
        most: texts of each, evenly over all of them.
        seed: of the halves and of the random units.
    """
    readings = []
    with evaluating(inference.model), random_units(inference.model, layout, DRAWS, seed) as random_layouts:
        for text_set in text_sets.values():
            reading = _read(inference, [layout, *random_layouts], text_set, most, seed) if text_set.labels else None
            if reading is None or not any(reading.concepts()):
                STDERR.print(f"{text_set.name} is not probed: no label that {FEWEST} texts have and {FEWEST} lack.")
            else:
                readings.append(reading)
    return readings


def _read(inference: Inference, layouts: Sequence[Layout], text_set: TextSet, most: int, seed: int) -> Reading:
    labelled = [number for number, group in enumerate(text_set.groups) if group >= 0]
    numbers = [labelled[index] for index in spread(len(labelled), most)]
    group_N = np.array([text_set.groups[number] for number in numbers])
    is_training_N = training_half(group_N, seed)
    chosen = set(numbers)
    by_number = {
        text.number: text for text in text_set.texts(inference.tokenizer, text_set.groups) if text.number in chosen
    }
    texts = [by_number[number] for number in numbers]
    shrink = _shrinking(
        inference, layouts, [text for text, used in zip(texts, is_training_N, strict=True) if used], seed
    )
    index_of = {number: index for index, number in enumerate(numbers)}
    units = len(layouts[0].units)
    means_DSNU = np.zeros((len(layouts), len(SHARES), len(texts), units))
    with tracked(f"Scores on {text_set.name}", len(texts)) as step:
        for text, all_h_TU in _units(inference, texts, layouts):
            means_DSNU[:, :, index_of[text.number]] = [
                [h_TU.mean(0).numpy() for h_TU in shrink[d](h_TU)] for d, h_TU in enumerate(all_h_TU)
            ]
            step()
    return Reading(
        name=text_set.name,
        labels=text_set.labels,
        group_N=group_N,
        is_training_N=is_training_N,
        own_SNU=means_DSNU[0],
        random_DSNU=means_DSNU[1:],
    )


def _units(
    inference: Inference, texts: Sequence[Text], layouts: Sequence[Layout]
) -> Iterator[tuple[Text, list[torch.Tensor]]]:
    pad = inference.tokenizer.pad_token_id
    return units_by_text(inference.model, texts, layouts, pad_token_id=pad, batch_size=inference.batch_size)


Shrink = Callable[[torch.Tensor], list[torch.Tensor]]  # activations of a text at each share


def _shrinking(inference: Inference, layouts: Sequence[Layout], texts: Sequence[Text], seed: int) -> list[Shrink]:
    """For each layout, its units at each share, by thresholds from a sample of the training texts."""
    own, *others = _sample(inference, layouts, texts, seed)
    signed = layouts[0].signed
    own_thresholds_SU = [own_thresholds(own, share) for share in SHARES]
    shrinks = [_shrink(own_thresholds_SU, signed)]
    for other in others:
        if signed:
            shrinks.append(_shrink([own_thresholds(other, share) for share in SHARES], signed))
        else:
            shares = [fired_share(shrunk(own, threshold_U, signed)) for threshold_U in own_thresholds_SU]
            shrinks.append(_shrink([fired_share_thresholds(other, share_U) for share_U in shares], signed))
    return shrinks


def _shrink(thresholds_SU: Sequence[torch.Tensor], signed: bool) -> Shrink:
    return lambda h_TU: [shrunk(h_TU, threshold_U, signed) for threshold_U in thresholds_SU]


def _sample(inference: Inference, layouts: Sequence[Layout], texts: Sequence[Text], seed: int) -> list[torch.Tensor]:
    """Activations on some tokens of the texts, ``(T, U)`` for each layout; texts are taken in a random order."""
    order = np.random.default_rng(seed).permutation(len(texts)).tolist()
    lengths = np.cumsum([len(texts[index].counted) for index in order])
    taken = order[: int(np.searchsorted(lengths, _SAMPLE)) + 1]
    parts = [all_h_TU for _, all_h_TU in _units(inference, [texts[index] for index in taken], layouts)]
    return [torch.cat(of_layout) for of_layout in zip(*parts, strict=True)]


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
    labels, training, test = [], [], []
    z_NU = standardised(reading.own_SNU[0], reading.is_training_N)
    for label, has_label_N in reading.concepts():
        logits_NU = single_unit_logits(z_NU, has_label_N, reading.is_training_N)
        right_NU = (logits_NU > 0) == has_label_N[:, None]
        for half, is_in_N in ((training, reading.is_training_N), (test, ~reading.is_training_N)):
            half.append(class_weights(has_label_N[is_in_N]) @ right_NU[is_in_N])
        labels.append(label)
    best_U = np.argmax(training, axis=0)
    return UnitProbes(np.take_along_axis(np.stack(test), best_U[None], 0)[0], [labels[best] for best in best_U])
