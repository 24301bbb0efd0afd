"""Where units fire most strongly: one place in each of the texts with the highest peaks, with the tokens around it.

Shapes: B texts of a batch, L tokens of each, U units, K contexts, W tokens of a context.
"""

from __future__ import annotations

import torch

from monolora.explain.strongest import strongest

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
        ids_UKW: token ids around the peak, which is at place ``BEFORE``; ``NO_TOKEN`` beyond the text.
        activation_UKW: of the unit on them; NaN where they are not counted.

    Args:
        units: U.
        most: K.
        sign: 1 for the highest activations, -1 for the lowest (values are then turned round).
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
        found = strongest(self.value_UK, self.number_UK, peak.values.T, number_B)
        kept = self.value_UK.shape[1]
        new_UK = (found.place_UK >= kept) & (found.value_UK > -torch.inf)
        self.value_UK, self.number_UK = found.value_UK, found.number_UK
        self._move(found.place_UK.clamp(max=kept - 1))
        unit_N, slot_N = new_UK.nonzero(as_tuple=True)
        if len(unit_N) == 0:
            return
        text_N = found.place_UK[unit_N, slot_N] - kept
        position_N = peak.indices[text_N, unit_N]
        self.position_UK[unit_N, slot_N] = position_N
        self.length_UK[unit_N, slot_N] = length_B[text_N]
        at_NW = position_N[:, None] + self._around_W
        is_there_NW = (at_NW >= 0) & (at_NW < length_B[text_N, None])
        at_NW = at_NW.clamp(0, ids_BL.shape[1] - 1)
        row_N1 = text_N[:, None]
        self.ids_UKW[unit_N, slot_N] = ids_BL[row_N1, at_NW].int().masked_fill(~is_there_NW, NO_TOKEN)
        is_counted_NW = is_there_NW & counted_BL[row_N1, at_NW]
        h_NW = h_BLU[row_N1, at_NW, unit_N[:, None]]
        self.activation_UKW[unit_N, slot_N] = h_NW.masked_fill(~is_counted_NW, torch.nan)

    def _move(self, place_UK: torch.Tensor) -> None:
        """Bring what is known of the contexts that stay to their new places."""
        self.position_UK = self.position_UK.gather(1, place_UK)
        self.length_UK = self.length_UK.gather(1, place_UK)
        place_UKW = place_UK[:, :, None].expand(self.ids_UKW.shape)
        self.ids_UKW = self.ids_UKW.gather(1, place_UKW)
        self.activation_UKW = self.activation_UKW.gather(1, place_UKW)
