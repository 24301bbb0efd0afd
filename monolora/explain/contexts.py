"""The strongest values of a stream, with their contexts, for every unit at once.

Shapes: U units, B new values, K values kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from monolora.explain.histograms import Bins


class Strongest(NamedTuple):
    """Kept values, strongest first, shape ``(U, K)`` each.

    Attributes:
        value_UK: the values; minus infinity for none.
        number_UK: of their texts; -1 for none.
        slot_UK: their former index: below K among the kept values, from K on among the new ones.
    """

    value_UK: torch.Tensor
    number_UK: torch.Tensor
    slot_UK: torch.Tensor


def strongest(
    value_UK: torch.Tensor, number_UK: torch.Tensor, value_UB: torch.Tensor, number_B: torch.Tensor
) -> Strongest:
    """The K strongest of the kept and the new values; of equal ones, those of the earlier texts.

    Only values above 0 are kept: an end of a unit that does not fire has no strongest texts.
    """
    new_UB = value_UB.masked_fill(value_UB <= 0, -torch.inf)
    values = torch.cat([value_UK, new_UB], 1)
    numbers = torch.cat([number_UK, number_B.expand(new_UB.shape)], 1)
    by_number = numbers.argsort(dim=1, stable=True)
    by_value = values.gather(1, by_number).argsort(dim=1, stable=True, descending=True)
    slot_UK = by_number.gather(1, by_value)[:, : value_UK.shape[1]]
    top_value_UK = values.gather(1, slot_UK)
    return Strongest(top_value_UK, numbers.gather(1, slot_UK).masked_fill(top_value_UK == -torch.inf, -1), slot_UK)


BEFORE, AFTER = 14, 6  # tokens beside the peak that are kept
WIDTH = BEFORE + 1 + AFTER
NO_TOKEN = -1


class Contexts:
    """The K texts with the highest peaks of each unit, over a stream of batches.

    Attributes:
        sign: as given.
        value_UK: the peaks, highest first; minus infinity where there are fewer texts in which the unit fires.
        number_UK: of the texts; -1 for none.
        position_UK: of the peak in its text; of equal ones the first.
        length_UK: of the text.
        ids_UKW: token ids around the peak, which is at index ``BEFORE``; ``NO_TOKEN`` beyond the text.
        activation_UKW: of the unit on them; NaN where they are not counted.

    Args:
        units: U.
        most: K.
        sign: 1 for the highest activations, -1 for the lowest (values are then negated).
        device: of the activations.
    """

    def __init__(self, units: int, most: int, sign: int, device: torch.device) -> None:
        self.sign = sign
        self.value_UK = torch.full((units, most), -torch.inf, device=device)
        self.number_UK = torch.full((units, most), -1, dtype=torch.int64, device=device)
        self.position_UK = torch.zeros_like(self.number_UK)
        self.length_UK = torch.zeros_like(self.number_UK)
        self.ids_UKW = torch.full((units, most, WIDTH), NO_TOKEN, dtype=torch.int32, device=device)
        self.activation_UKW = torch.full((units, most, WIDTH), torch.nan, device=device)
        self._around_W = torch.arange(-BEFORE, AFTER + 1, device=device)

    def add(
        self,
        h_BLU: torch.Tensor,
        ids_BL: torch.Tensor,
        counted_BL: torch.Tensor,
        length_B: torch.Tensor,
        number_B: torch.Tensor,
    ) -> None:
        """Look through a batch.

        Args:
            h_BLU: activations, float32.
            ids_BL: token ids, padded on the right.
            counted_BL: which tokens count.
            length_B: tokens of each text.
            number_B: of each text.
        """
        signed_BLU = h_BLU if self.sign > 0 else -h_BLU
        peak = signed_BLU.masked_fill(~counted_BL[:, :, None], -torch.inf).max(1)
        top = strongest(self.value_UK, self.number_UK, peak.values.T, number_B)
        most = self.value_UK.shape[1]
        new_UK = (top.slot_UK >= most) & (top.value_UK > -torch.inf)
        self.value_UK, self.number_UK = top.value_UK, top.number_UK
        self._move(top.slot_UK.clamp(max=most - 1))
        unit_N, slot_N = new_UK.nonzero(as_tuple=True)
        if len(unit_N) == 0:
            return
        text_N = top.slot_UK[unit_N, slot_N] - most
        position_N = peak.indices[text_N, unit_N]
        self.position_UK[unit_N, slot_N] = position_N
        self.length_UK[unit_N, slot_N] = length_B[text_N]
        at_NW = position_N[:, None] + self._around_W
        in_text_NW = (at_NW >= 0) & (at_NW < length_B[text_N, None])
        at_NW = at_NW.clamp(0, ids_BL.shape[1] - 1)
        row_N1 = text_N[:, None]
        self.ids_UKW[unit_N, slot_N] = ids_BL[row_N1, at_NW].int().masked_fill(~in_text_NW, NO_TOKEN)
        is_counted_NW = in_text_NW & counted_BL[row_N1, at_NW]
        h_NW = h_BLU[row_N1, at_NW, unit_N[:, None]]
        self.activation_UKW[unit_N, slot_N] = h_NW.masked_fill(~is_counted_NW, torch.nan)

    def _move(self, slot_UK: torch.Tensor) -> None:
        """Reorder the contexts that stay."""
        self.position_UK = self.position_UK.gather(1, slot_UK)
        self.length_UK = self.length_UK.gather(1, slot_UK)
        slot_UKW = slot_UK[:, :, None].expand(self.ids_UKW.shape)
        self.ids_UKW = self.ids_UKW.gather(1, slot_UKW)
        self.activation_UKW = self.activation_UKW.gather(1, slot_UKW)


ROOM = 2**26  # counts of texts by unit, group and bin: 268 MB in a pass, and 537 MB in what comes out of it
MOST_BITS = 6  # bins of a 64th of an octave; the means of texts are much alike
THRESHOLD = 1e-5  # of the paper: an activation above it fires


class Text(NamedTuple):
    """A text of a data set.

    Attributes:
        number: in its data set, from 0.
        ids: token ids.
        start: earlier tokens are read but not counted, as when all texts share their beginning.
        stop: tokens from here on are not counted either, as when all texts share their ending.
        group: number of its label; -1 for none.
    """

    number: int
    ids: Sequence[int]
    start: int = 0
    stop: int = 2**31
    group: int = -1

    @property
    def counted(self) -> range:
        """The positions of the tokens that count."""
        return range(max(self.start, 0), min(self.stop, len(self.ids)))


def text_bins(units: int, groups: int, signed: bool) -> Bins:
    """The finest bins within ``ROOM``; whole octaves (25 bins, or 49 of signed units) even beyond it."""
    candidates = (Bins(signed, bits) for bits in range(MOST_BITS, 0, -1))
    return next((bins for bins in candidates if units * (groups + 1) * bins.number <= ROOM), Bins(signed, 0))


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
        group_index_B = torch.where(group_B < 0, groups - 1, group_B)
        self.texts_G += torch.bincount(group_index_B, minlength=groups)
        fired_UB = (mean_BU.abs() > THRESHOLD).T.long()
        self.fired_UG.index_add_(1, group_index_B, fired_UB)
        self._count(self.bins.of(mean_BU), group_index_B)
        labelled = group_B >= 0
        for end, sign in enumerate((1, -1)[: len(self.value_SUM)]):
            self._keep(end, sign * mean_BU[labelled].T, number_B[labelled], group_B[labelled])

    def _count(self, bin_BU: torch.Tensor, group_index_B: torch.Tensor) -> None:
        units, groups, bins = self.histogram_UGE.shape
        of_unit_U = torch.arange(units, device=bin_BU.device) * (groups * bins)
        cell_BU = of_unit_U + (group_index_B * bins)[:, None] + bin_BU
        flat = cell_BU.flatten()
        self.histogram_UGE.view(-1).index_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))

    def _keep(self, end: int, value_UB: torch.Tensor, number_B: torch.Tensor, group_B: torch.Tensor) -> None:
        top = strongest(self.value_SUM[end], self.number_SUM[end], value_UB, number_B)
        group_UB = group_B.expand(value_UB.shape)
        self.group_SUM[end] = torch.cat([self.group_SUM[end], group_UB], 1).gather(1, top.slot_UK)
        self.value_SUM[end], self.number_SUM[end] = top.value_UK, top.number_UK
