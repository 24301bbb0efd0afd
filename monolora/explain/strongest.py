"""The strongest of a stream, for every unit at once.

Shapes: U units, B new values, K kept ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Strongest(NamedTuple):
    """Kept values, strongest first, shape ``(U, K)`` each.

    Attributes:
        value_UK: the values; minus infinity for none.
        number_UK: of the texts that have them; -1 for none.
        place_UK: where they were: below K among the values kept before, from K on among the new ones.
    """

    value_UK: torch.Tensor
    number_UK: torch.Tensor
    place_UK: torch.Tensor


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
    place_UK = by_number.gather(1, by_value)[:, : value_UK.shape[1]]
    kept = values.gather(1, place_UK)
    return Strongest(kept, numbers.gather(1, place_UK).masked_fill(kept == -torch.inf, -1), place_UK)
