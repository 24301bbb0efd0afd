"""An adapter's units and random ones on the same texts, at several sparsities.

Shapes: N texts, T tokens, U units, S shares of tokens on which units fire at most, D adapters: the model's own, then
those of random units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from monolora.eval.explain.records import Floats
from monolora.explain.collector import units_by_text
from monolora.explain.contexts import Text
from monolora.explain.random_units import fired_share, fired_share_thresholds, own_thresholds, random_units, shrunk
from monolora.inference import Inference, evaluating
from monolora.stats import SEED
from monolora.terminal import tracked
from monolora.units import Layout

SHARES = (1.0, 0.3, 0.1, 0.03, 0.01)  # of tokens on which a unit fires at most; 1 is as trained
DRAWS = 3  # of random units
SAMPLE = 4096  # tokens from which thresholds are taken

Shrink = Callable[[torch.Tensor], list[torch.Tensor]]  # activations of a text, ``(T, U)``, at each share


class Sample(NamedTuple):
    """Activations on some tokens.

    Attributes:
        ids_T: ids of the tokens.
        text_T: index of each token's text, from 0.
        own_TU: of the adapter's units.
        all_random_TU: of random units, for each draw.
    """

    ids_T: torch.Tensor
    text_T: torch.Tensor
    own_TU: torch.Tensor
    all_random_TU: list[torch.Tensor]

    def thresholds(self, share: float, signed: bool) -> list[torch.Tensor]:
        """For own and each draw of random units, what cuts them to a share of the tokens, ``(U,)``.

        Random ones fire as often as those that they stand for.
        """
        own_U = own_thresholds(self.own_TU, share)
        if signed:
            return [own_U, *(own_thresholds(random_TU, share) for random_TU in self.all_random_TU)]
        fired_U = fired_share(shrunk(self.own_TU, own_U, signed))
        return [own_U, *(fired_share_thresholds(random_TU, fired_U) for random_TU in self.all_random_TU)]

    def random_as_units(self, signed: bool) -> list[torch.Tensor]:
        """Activations of each draw of random units that fire as often as own ones do as trained."""
        _, *thresholds = self.thresholds(1.0, signed)
        return [
            shrunk(random_TU, threshold_U, signed)
            for random_TU, threshold_U in zip(self.all_random_TU, thresholds, strict=True)
        ]


class UnitReader:
    """Reads units on texts; see :func:`reading_units`.

    Args:
        inference: the adapted model.
        layouts: of its own units, and of random ones.
        seed: of the texts from which thresholds are taken.
    """

    def __init__(self, inference: Inference, layouts: Sequence[Layout], seed: int) -> None:
        self._inference, self._layouts, self._seed = inference, layouts, seed
        self.units, self.signed = len(layouts[0].units), layouts[0].signed

    def sample(self, texts: Sequence[Text]) -> Sample:
        """Activations on some 4,096 tokens, of texts drawn at random."""
        order = np.random.default_rng(self._seed).permutation(len(texts)).tolist()
        lengths = np.cumsum([len(texts[index].counted) for index in order])
        taken = order[: int(np.searchsorted(lengths, SAMPLE)) + 1]
        chosen = [texts[index] for index in taken]
        parts = {text.number: all_h_TU for text, all_h_TU in self._read(chosen)}
        own_TU, *random_TU = (
            torch.cat(of_layout) for of_layout in zip(*(parts[text.number] for text in chosen), strict=True)
        )
        ids = [text.ids[place] for text in chosen for place in text.counted]
        text_index = [index for index, text in enumerate(chosen) for _ in text.counted]
        return Sample(torch.tensor(ids), torch.tensor(text_index), own_TU, random_TU)

    def text_means(self, name: str, texts: Sequence[Text], sample: Sample, of_size: bool = False) -> Floats:
        """Mean activations of each text at each share, float64 ``(D, S, N, U)``.

        Args:
            name: of the data set, for the progress bar.
            texts: each with a number of its own.
            sample: of :meth:`sample`, from which the thresholds are taken.
            of_size: whether absolute activations are meant.
        """
        shrinks = self._shrinks(sample)
        index_of = {text.number: index for index, text in enumerate(texts)}
        means_DSNU = np.zeros((len(self._layouts), len(SHARES), len(texts), self.units))
        with tracked(f"Scores on {name}", len(texts)) as step:
            for text, all_h_TU in self._read(texts):
                for d, (shrink, h_TU) in enumerate(zip(shrinks, all_h_TU, strict=True)):
                    for s, cut_TU in enumerate(shrink(h_TU)):
                        means_DSNU[d, s, index_of[text.number]] = (cut_TU.abs() if of_size else cut_TU).mean(0)
                step()
        return means_DSNU

    def _read(self, texts: Sequence[Text]) -> Iterator[tuple[Text, list[torch.Tensor]]]:
        inference = self._inference
        pad = inference.tokenizer.pad_token_id
        return units_by_text(inference.model, texts, self._layouts, pad_token_id=pad, batch_size=inference.batch_size)

    def _shrinks(self, sample: Sample) -> list[Shrink]:
        """For each adapter, what cuts its units to each share."""
        signed = self.signed
        thresholds_SD = [sample.thresholds(share, signed) for share in SHARES]
        return [_shrink(thresholds_S, signed) for thresholds_S in zip(*thresholds_SD, strict=True)]


def _shrink(thresholds_S: Sequence[torch.Tensor], signed: bool) -> Shrink:
    return lambda h_TU: [shrunk(h_TU, threshold_U, signed) for threshold_U in thresholds_S]


@contextmanager
def reading_units(inference: Inference, layout: Layout, seed: int = SEED) -> Iterator[UnitReader]:
    """A reader of an adapter's units, beside :data:`DRAWS` times as many random ones, which the model has meanwhile."""
    with evaluating(inference.model), random_units(inference.model, layout, DRAWS, seed) as random_layouts:
        yield UnitReader(inference, [layout, *random_layouts], seed)
