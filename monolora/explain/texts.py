"""Texts to read the units on, and what is kept of whole texts: mean activations, by group.

Shapes: B texts of a batch, U units, G groups, E bins, M strongest texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from monolora.explain.bins import Bins
from monolora.explain.strongest import strongest

ROOM = 2**26  # counts of texts by unit, group and bin: 268 MB in a pass, and 537 MB in what comes out of it
MOST_BITS = 6  # bins of a 64th of an octave; the means of texts are much alike
THRESHOLD = 1e-5  # of the paper: an activation above it fires


class Text(NamedTuple):
    """A text of a data set.

    Attributes:
        number: in its data set, from 0.
        ids: token ids.
        start: tokens before this place are read but not counted, as when all texts share their beginning.
        stop: tokens from this place on are not counted either, as when all texts share their ending.
        group: number of its label; -1 for none.
    """

    number: int
    ids: Sequence[int]
    start: int = 0
    stop: int = 2**31
    group: int = -1

    @property
    def counted(self) -> range:
        """The places of the tokens that count."""
        return range(max(self.start, 0), min(self.stop, len(self.ids)))


def text_bins(units: int, groups: int, signed: bool) -> Bins:
    """The finest bins that there is room for.

    Whole octaves are the coarsest, 25 bins or 49 of signed units: they are taken even where that is more than
    ``ROOM``, as with more than 50 labels and 26,000 signed units.
    """
    every = (Bins(signed, bits) for bits in range(MOST_BITS, 0, -1))
    return next((bins for bins in every if units * (groups + 1) * bins.number <= ROOM), Bins(signed, 0))


class TextMeans:
    """Every unit's mean activation over the counted tokens of a text: histograms by group, and the strongest texts.

    Args:
        units: U.
        groups: G.
        signed: whether activations may be negative; then the lowest means are kept beside the highest.
        most: M, how many of the strongest texts of a label are kept.
        device: of the activations.
    """

    def __init__(self, units: int, groups: int, signed: bool, most: int, device: torch.device) -> None:
        self.bins = text_bins(units, groups, signed)
        self.texts_G = torch.zeros(groups + 1, dtype=torch.int64, device=device)
        self.fired_UG = torch.zeros(units, groups + 1, dtype=torch.int64, device=device)
        self.histogram_UGE = torch.zeros(units, groups + 1, self.bins.number, dtype=torch.int32, device=device)
        ends = 2 if signed else 1
        self.value_SUM = torch.full((ends, units, most), -torch.inf, device=device)
        self.number_SUM = torch.full((ends, units, most), -1, dtype=torch.int64, device=device)
        self.group_SUM = torch.full((ends, units, most), -1, dtype=torch.int64, device=device)

    def add(self, mean_BU: torch.Tensor, number_B: torch.Tensor, group_B: torch.Tensor) -> None:
        """Count texts; those without a label go to the last group and never among the strongest."""
        groups = len(self.texts_G)
        place_B = torch.where(group_B < 0, groups - 1, group_B)
        self.texts_G += torch.bincount(place_B, minlength=groups)
        fired_UB = (mean_BU.abs() > THRESHOLD).T.long()
        self.fired_UG.index_add_(1, place_B, fired_UB)
        self._count(self.bins.of(mean_BU), place_B)
        labelled = group_B >= 0
        for end, sign in enumerate((1, -1)[: len(self.value_SUM)]):
            self._keep(end, sign * mean_BU[labelled].T, number_B[labelled], group_B[labelled])

    def _count(self, bin_BU: torch.Tensor, place_B: torch.Tensor) -> None:
        units, groups, bins = self.histogram_UGE.shape
        of_unit_U = torch.arange(units, device=bin_BU.device) * (groups * bins)
        place_BU = of_unit_U + (place_B * bins)[:, None] + bin_BU
        flat = place_BU.flatten()
        self.histogram_UGE.view(-1).index_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))

    def _keep(self, end: int, value_UB: torch.Tensor, number_B: torch.Tensor, group_B: torch.Tensor) -> None:
        found = strongest(self.value_SUM[end], self.number_SUM[end], value_UB, number_B)
        group_UB = group_B.expand(value_UB.shape)
        self.group_SUM[end] = torch.cat([self.group_SUM[end], group_UB], 1).gather(1, found.place_UK)
        self.value_SUM[end], self.number_SUM[end] = found.value_UK, found.number_UK
