"""Sums over tokens: how often units fire, how strongly, in which sizes, and with which other units.

Shapes: T tokens, U units, E bins, P units of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from monolora.errors import InputError
from monolora.explain.contexts import Contexts, Text, TextMeans
from monolora.explain.histograms import Bins
from monolora.units import Layout

BITS = 2  # of the histogram: a quarter of an octave a bin
BLOCK = 4096  # units whose co-activation is counted together; a matrix of 134 MB
CONSTANT = 1e-6  # of the mean: a smaller standard deviation is rounding of float32


class Moments:
    """Sums over the tokens of a data set, on one device; sums are float64.

    Co-activation is counted within blocks of 4,096 units in their order, which most adapters have only one of.

    Args:
        units: U.
        signed: whether activations may be negative.
        device: of the activations.
    """

    def __init__(self, units: int, signed: bool, device: torch.device) -> None:
        self._signed = signed
        self._bins = Bins(signed, BITS)
        self._first_bin_U = torch.arange(units, device=device, dtype=torch.int32) * self._bins.number
        self.tokens = 0
        self._pivot_U: torch.Tensor | None = None
        self.fired_U = torch.zeros(units, dtype=torch.int64, device=device)
        self.sum_U = torch.zeros(units, dtype=torch.float64, device=device)
        self.absolute_U = torch.zeros_like(self.sum_U)
        self.max_U = torch.full((units,), -torch.inf, device=device)
        self.min_U = torch.full((units,), torch.inf, device=device)
        self.histogram_UE = torch.zeros(units, self._bins.number, dtype=torch.int64, device=device)
        self._blocks = [slice(start, min(start + BLOCK, units)) for start in range(0, units, BLOCK)]
        self._products = [self.sum_U.new_zeros(at.stop - at.start, at.stop - at.start) for at in self._blocks]

    def add(self, h_TU: torch.Tensor) -> None:
        """Count tokens; float32."""
        self.tokens += h_TU.shape[0]
        if self._pivot_U is None:
            # Near the means, so that little is lost where products of float32 are added up and means taken off.
            self._pivot_U = h_TU.mean(0)
        shifted_TU = h_TU - self._pivot_U
        self.sum_U += h_TU.sum(0, dtype=torch.float64)
        self.absolute_U += h_TU.abs().sum(0, dtype=torch.float64) if self._signed else 0
        self.max_U = torch.maximum(self.max_U, h_TU.amax(0))
        self.min_U = torch.minimum(self.min_U, h_TU.amin(0))
        self.fired_U += (h_TU != 0).sum(0)
        bins_TU = self._bins.of(h_TU) + self._first_bin_U
        self.histogram_UE += torch.bincount(bins_TU.flatten(), minlength=self.histogram_UE.numel()).view(
            self.histogram_UE.shape
        )
        for at, product_PP in zip(self._blocks, self._products, strict=True):
            product_PP += shifted_TU[:, at].T @ shifted_TU[:, at]

    def mean_size(self) -> torch.Tensor:
        """Mean absolute activation."""
        return (self.absolute_U if self._signed else self.sum_U) / self.tokens

    def std(self) -> torch.Tensor:
        """Standard deviation over all tokens; 0 for an activation that is constant up to rounding."""
        return self._variance().sqrt()

    def _variance(self) -> torch.Tensor:
        squares_U = torch.cat([product_PP.diagonal() for product_PP in self._products])
        variance_U = squares_U / self.tokens - self._shifted_mean() ** 2
        return variance_U.where(variance_U > (CONSTANT * self.sum_U / self.tokens) ** 2, 0)

    def _shifted_mean(self) -> torch.Tensor:
        assert self._pivot_U is not None  # tokens were counted
        return self.sum_U / self.tokens - self._pivot_U

    def partners(self, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The units most correlated with each, by the size of Pearson's correlation over tokens.

        Returns:
            Indices of the units and the correlations, ``(U, most)`` each; index -1 where there are no more, or where an
            activation is constant (:meth:`std` is 0).
        """
        mean_U, std_U = self._shifted_mean(), self.std()
        partners, correlations = [], []
        for at, product_PP in zip(self._blocks, self._products, strict=True):
            covariance_PP = product_PP / self.tokens - torch.outer(mean_U[at], mean_U[at])
            r_PP = covariance_PP / torch.outer(std_U[at], std_U[at])
            r_PP = r_PP.nan_to_num_(0, 0, 0).clamp_(-1, 1).fill_diagonal_(0)
            top = r_PP.abs().topk(min(most, len(r_PP)), dim=1)
            r_PM = r_PP.gather(1, top.indices)
            pad = (0, most - r_PM.shape[1])
            correlations.append(torch.nn.functional.pad(r_PM, pad))
            partners.append(torch.nn.functional.pad(top.indices + at.start, pad))
        r_UM, partner_UM = torch.cat(correlations), torch.cat(partners)
        return partner_UM.masked_fill(r_UM == 0, -1), r_UM


ROOM = 2**25  # sums that are kept, at most (268 MB)
FEWEST = 5  # times that a token must have come


class TopTokens(NamedTuple):
    """Tokens with the highest means, shape ``(U, N)`` each, highest first; id -1 where there are no more."""

    ids_UN: torch.Tensor
    mean_UN: torch.Tensor
    count_UN: torch.Tensor


class TokenMeans:
    """Sums of activations by token id, in float64: float32 is too coarse for frequent tokens.

    Args:
        units: U.
        vocabulary: how many token ids there are.
        device: of the activations.
    """

    def __init__(self, units: int, vocabulary: int, device: torch.device) -> None:
        self._room = max(1, min(vocabulary, ROOM // units))
        self._row_of_id = torch.full((vocabulary,), -1, dtype=torch.int64, device=device)
        self._ids = torch.empty(0, dtype=torch.int64, device=device)
        self._sum_VU = torch.zeros(self._room, units, dtype=torch.float64, device=device)
        self._count_V = torch.zeros(self._room, dtype=torch.int64, device=device)

    def add(self, h_TU: torch.Tensor, ids_T: torch.Tensor) -> None:
        """Count tokens; those beyond the room are ignored."""
        unseen = ids_T[self._row_of_id[ids_T] < 0].unique()[: self._room - len(self._ids)]
        self._row_of_id[unseen] = torch.arange(len(self._ids), len(self._ids) + len(unseen), device=ids_T.device)
        self._ids = torch.cat([self._ids, unseen])
        row_T = self._row_of_id[ids_T]
        if len(self._ids) == self._room:
            has_room_T = row_T >= 0
            h_TU, row_T = h_TU[has_room_T], row_T[has_room_T]
        self._sum_VU.index_add_(0, row_T, h_TU.double())
        self._count_V += torch.bincount(row_T, minlength=self._room)

    def top(self, most: int, sign: int) -> TopTokens:
        """The tokens with the highest means (the lowest for ``sign=-1``) of those that came five times or more.

        Only means on that side of 0 are given.
        """
        often_V = (self._count_V[: len(self._ids)] >= FEWEST).nonzero()[:, 0]
        signed_VU = self._sum_VU[often_V].div_(sign * self._count_V[often_V, None])
        top = signed_VU.topk(min(most, len(often_V)), dim=0)
        row_NU = often_V[top.indices]
        is_given_NU = top.values > 0
        ids_NU = self._ids[row_NU].masked_fill(~is_given_NU, -1)
        return TopTokens(ids_NU.T, sign * top.values.T, self._count_V[row_NU].T)


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
        mean: of its activations over tokens, ``(U,)``.
        std: likewise.
        max: likewise.
        min: likewise.
        effect: mean norm of what the unit adds to its module's output, over the mean norm of the base layer's output
            (``‖s B[:, j]‖ mean |h_j| / mean ‖W x‖``), ``(U,)``. The latter is over a part of the tokens, see
            :class:`monolora.explain.collector.OutputNorms`.
        histogram_UE: tokens in each of the quarter octaves of :mod:`monolora.explain.histograms`.
        fired_UG: texts whose mean activation is above the paper's threshold, 1e-5, in size.
        text_histogram_UGE: texts by their mean activation, in ``text_bins``; E is not that of the tokens.
        text_bins: as fine as there is room for, 64 an octave or less, down to whole octaves; two texts in one bin are
            a tie. The more units and labels, the coarser: those of two data sets may differ, and
            :func:`monolora.explain.histograms.merged` makes them the same.
        strongest_SUM: labels of the texts with the strongest mean activations; -1 where there are fewer.
        contexts: one of each end.
        tokens_by_end: likewise; of the tokens that there is room for, see :mod:`monolora.explain.unit_statistics`.
        partner_UP: the units most correlated with each, by index; -1 for none.
        correlation_UP: their correlations.
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
        """The statistics of all tokens so far, on the CPU.

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

    Other tokens are excluded, not multiplied by 0: they may be infinite.
    """
    return torch.stack([h_LU.mean(0) for h_LU in h_TU.split(counted_BL.sum(1).tolist())])


def _floats(values: torch.Tensor) -> Floats:
    return values.double().cpu().numpy()


def _ints(values: torch.Tensor) -> Ints:
    return values.long().cpu().numpy()
