"""An adapter's units and random ones on the same texts, at several sparsities.

Shapes: N texts, T tokens, U units, S shares of tokens on which units fire at most, D adapters: the model's own, then
those of random units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

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


class UnitReader:
    """Reads units on texts; see :func:`reading`.

    Args:
        inference: the adapted model.
        layouts: of its own units, and of random ones.
        seed: of the texts from which thresholds are taken.
    """

    def __init__(self, inference: Inference, layouts: Sequence[Layout], seed: int) -> None:
        self._inference, self._layouts, self._seed = inference, layouts, seed
        self.units = len(layouts[0].units)

    def sample(self, texts: Sequence[Text]) -> list[torch.Tensor]:
        """Activations on some 4,096 tokens of texts drawn at random, ``(T, U)`` for each adapter."""
        order = np.random.default_rng(self._seed).permutation(len(texts)).tolist()
        lengths = np.cumsum([len(texts[index].counted) for index in order])
        taken = order[: int(np.searchsorted(lengths, SAMPLE)) + 1]
        parts = {text.number: all_h_TU for text, all_h_TU in self._read([texts[index] for index in taken])}
        in_order = [parts[texts[index].number] for index in taken]
        return [torch.cat(of_layout) for of_layout in zip(*in_order, strict=True)]

    def text_means(
        self, name: str, texts: Sequence[Text], sample: Sequence[torch.Tensor], of_size: bool = False
    ) -> Floats:
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

    def _shrinks(self, sample: Sequence[torch.Tensor]) -> list[Shrink]:
        """For each adapter, what cuts its units; random ones fire as often as those that they stand for."""
        own, *others = sample
        signed = self._layouts[0].signed
        own_thresholds_SU = [own_thresholds(own, share) for share in SHARES]
        shrinks = [_shrink(own_thresholds_SU, signed)]
        for other in others:
            if signed:
                shrinks.append(_shrink([own_thresholds(other, share) for share in SHARES], signed))
            else:
                fired_SU = [fired_share(shrunk(own, threshold_U, signed)) for threshold_U in own_thresholds_SU]
                shrinks.append(_shrink([fired_share_thresholds(other, share_U) for share_U in fired_SU], signed))
        return shrinks


def _shrink(thresholds_SU: Sequence[torch.Tensor], signed: bool) -> Shrink:
    return lambda h_TU: [shrunk(h_TU, threshold_U, signed) for threshold_U in thresholds_SU]


@contextmanager
def reading(inference: Inference, layout: Layout, seed: int = SEED) -> Iterator[UnitReader]:
    """A reader of an adapter's units, beside :data:`DRAWS` times as many random ones, which the model has meanwhile."""
    with evaluating(inference.model), random_units(inference.model, layout, DRAWS, seed) as random_layouts:
        yield UnitReader(inference, [layout, *random_layouts], seed)
