"""Which tokens excite a unit: its mean activation over all the times that each token came.

There is room for ``ROOM`` divided by the number of units: for all of a vocabulary of 49,152 with up to 682 units, for
2,340 tokens with 14,336. Which those are then is settled as the batches come: the tokens of the first batches, and of
the batch with which the room ends, the lowest ids.

Shapes: T tokens of a batch, U units, V distinct tokens, N tokens that are reported.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

ROOM = 2**25  # sums that are kept, at most (268 MB)
FEWEST = 5  # times that a token must have come


class TopTokens(NamedTuple):
    """Tokens with the highest means, shape ``(U, N)`` each, highest first; id -1 where there are no more."""

    ids_UN: torch.Tensor
    mean_UN: torch.Tensor
    count_UN: torch.Tensor


class TokenMeans:
    """Sums of activations by token id, in float64: float32 would soon be too coarse for what a frequent token adds.

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
        """Count tokens; those for which there is no room left are passed over."""
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
        found = signed_VU.topk(min(most, len(often_V)), dim=0)
        row_NU = often_V[found.indices]
        is_there_NU = found.values > 0
        ids_NU = self._ids[row_NU].masked_fill(~is_there_NU, -1)
        return TopTokens(ids_NU.T, sign * found.values.T, self._count_V[row_NU].T)
