"""What a pass counts, and what comes out of it.

Shapes: B texts of a batch, L tokens of each, T counted tokens of a batch, U units, G groups, E bins, S ends (1, or 2 of
signed units: highest, lowest), K contexts, W tokens of a context, M strongest texts, P partners, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from monolora.errors import InputError
from monolora.explain.bins import Bins
from monolora.explain.contexts import Contexts
from monolora.explain.layout import Layout
from monolora.explain.moments import Moments
from monolora.explain.texts import Text, TextMeans
from monolora.explain.tokens import TokenMeans, TopTokens

STRONGEST = 50  # texts whose labels say how consistent a unit is at its strongest
PARTNERS = 8
TOKENS = 12

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The units of an adapter on the texts of a data set; see the head of this file for the shapes.

    Attributes:
        tokens: counted tokens.
        texts_G: texts of each label; the last entry counts those without one (G is one more than the labels).
        firing: share of tokens on which a unit is not 0, ``(U,)``.
        mean, std, max, min: of its activations over tokens, ``(U,)``.
        effect: mean norm of what the unit adds to its module's output, over the mean norm of the base layer's output
            (``‖s B[:, j]‖ mean |h_j| / mean ‖W x‖``), ``(U,)``. The latter is over a part of the tokens, see
            :class:`monolora.explain.output_norms.OutputNorms`.
        histogram_UE: tokens in each of the quarter octaves of :mod:`monolora.explain.bins`.
        fired_UG: texts whose mean activation is above the paper's threshold, 1e-5, in size.
        text_histogram_UGE: texts by their mean activation, in ``text_bins``; E is not that of the tokens.
        text_bins: as fine as there is room for, 64 an octave or less, down to whole octaves; two texts in one bin are
            a tie. The more units and labels, the coarser: those of two data sets may differ, and
            :func:`monolora.explain.bins.merged` makes them the same.
        strongest_SUM: labels of the texts with the strongest mean activations; -1 where there are fewer.
        contexts: one of each end.
        tokens_by_end: likewise; of the tokens that there is room for, see :mod:`monolora.explain.tokens`.
        partner_UP, correlation_UP: the units that go most with each, by place; -1 for none.
    """

    tokens: int
    texts_G: Ints
    firing: Floats
    mean: Floats
    std: Floats
    max: Floats
    min: Floats
    effect: Floats
    histogram_UE: Ints
    fired_UG: Ints
    text_histogram_UGE: Ints
    text_bins: Bins
    strongest_SUM: Ints
    contexts: list[Contexts]
    tokens_by_end: list[TopTokens]
    partner_UP: Ints
    correlation_UP: Floats


class Collector:
    """Counts batches of activations, wherever they come from.

    Args:
        layout: of the units.
        groups: how many labels there are.
        vocabulary: how many token ids there are.
        contexts: K.
        device: of the activations.
    """

    def __init__(self, layout: Layout, groups: int, vocabulary: int, contexts: int, device: torch.device) -> None:
        units = len(layout.units)
        self._layout = layout
        self._signs = (1, -1) if layout.signed else (1,)
        self._moments = Moments(units, layout.signed, device)
        self._means = TextMeans(units, groups, layout.signed, STRONGEST, device)
        self._contexts = [Contexts(units, contexts, sign, device) for sign in self._signs]
        self._tokens = TokenMeans(units, vocabulary, device)
        self.texts = 0

    def add(
        self,
        h_BLU: torch.Tensor,
        ids_BL: torch.Tensor,
        counted_BL: torch.Tensor,
        length_B: torch.Tensor,
        batch: Sequence[Text],
    ) -> None:
        """Count a batch, padded on the right, of texts with one counted token or more.

        Raises:
            InputError: if a unit is not finite on a counted token.
        """
        h_TU = h_BLU[counted_BL]
        self._check_finite(h_TU)
        self._moments.add(h_TU)
        self._tokens.add(h_TU, ids_BL[counted_BL])
        number_B = torch.tensor([text.number for text in batch], device=h_BLU.device)
        group_B = torch.tensor([text.group for text in batch], device=h_BLU.device)
        self._means.add(_text_means(h_TU, counted_BL), number_B, group_B)
        for contexts in self._contexts:
            contexts.add(h_BLU, ids_BL, counted_BL, length_B, number_B)
        self.texts += len(batch)

    def _check_finite(self, h_TU: torch.Tensor) -> None:
        finite_U = torch.isfinite(h_TU).all(0)
        if not finite_U.all():
            module = self._layout.module_of(int((~finite_U).nonzero()[0]))
            raise InputError(
                f"The units of {module} are not finite: its inputs overflow the number format, or the adapter is "
                "broken. Try --dtype float32; if that does not help, train the adapter again."
            )

    def finish(self, output_norm_U: torch.Tensor) -> Collected:
        """What was counted, on the CPU.

        Args:
            output_norm_U: mean norm of the base output of every unit's module.
        """
        moments, means = self._moments, self._means
        effect_U = self._layout.output_direction_norms() * moments.mean_size().cpu() / output_norm_U
        partner_UP, correlation_UP = moments.partners(PARTNERS)
        return Collected(
            tokens=moments.tokens,
            texts_G=_ints(means.texts_G),
            firing=_floats(moments.fired_U / moments.tokens),
            mean=_floats(moments.sum_U / moments.tokens),
            std=_floats(moments.std()),
            max=_floats(moments.max_U),
            min=_floats(moments.min_U),
            effect=_floats(effect_U),
            histogram_UE=_ints(moments.histogram_UE),
            fired_UG=_ints(means.fired_UG),
            text_histogram_UGE=_ints(means.histogram_UGE),
            text_bins=means.bins,
            strongest_SUM=_ints(means.group_SUM),
            contexts=self._contexts,
            tokens_by_end=[self._tokens.top(TOKENS, sign) for sign in self._signs],
            partner_UP=_ints(partner_UP),
            correlation_UP=_floats(correlation_UP),
        )


def _text_means(h_TU: torch.Tensor, counted_BL: torch.Tensor) -> torch.Tensor:
    """Mean activations of each text, ``(B, U)``, from those of the counted tokens, text after text.

    Those of other tokens have no part in it, not even times 0: they may be infinite.
    """
    return torch.stack([of_text.mean(0) for of_text in h_TU.split(counted_BL.sum(1).tolist())])


def _floats(values: torch.Tensor) -> Floats:
    return values.double().cpu().numpy()


def _ints(values: torch.Tensor) -> Ints:
    return values.long().cpu().numpy()
