"""What adapters add to a linear layer on a CPU: their A and B as products, and their activations.

Shapes: N rows, I inputs, O outputs, C slices of a fused layer, R units of a slice, U of all slices or adapters.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from monolora.activations import LINEAR_BOUNDS, activation_named


def row_bounds(activation: str) -> tuple[float, float]:
    """The bounds of the rows of an activation; none where it is more than a clamp."""
    return activation_named(activation).bounds or LINEAR_BOUNDS


def is_clamp(activation: str) -> bool:
    """Whether the bounds of its rows are all there is to an activation."""
    return activation_named(activation).bounds is not None


class Group(NamedTuple):
    """The rows of a batch that go through one adapter.

    Attributes:
        slot: of the adapter.
        rows: a range where they are next to each other, else their numbers.
        activation: of its units.
    """

    slot: int
    rows: slice | torch.Tensor
    activation: str


class Product(NamedTuple):
    """What one adapter adds to a linear layer, in its units that are not zero throughout.

    Attributes:
        A_IU: of all slices of a fused layer, side by side.
        expands: of each B, the columns of the output, the units, and ``(units, columns)``.
        slices: the units of each slice.
        threshold_U: of the units, zero where there are none.
    """

    A_IU: torch.Tensor
    expands: tuple[tuple[slice, slice, torch.Tensor], ...]
    slices: tuple[slice, ...]
    threshold_U: torch.Tensor

    def activate(self, z_NU: torch.Tensor, name: str) -> torch.Tensor:
        """Units from pre-activations, perhaps in place."""
        activation = activation_named(name)
        if is_clamp(name):
            bounds = row_bounds(name)
            return z_NU if bounds == LINEAR_BOUNDS else z_NU.clamp_(*bounds)
        if not activation.over_units:
            return activation(z_NU, -1, self.threshold_U)
        return torch.cat([activation(z_NU[:, units], -1, self.threshold_U[units]) for units in self.slices], 1)

    @classmethod
    def of(
        cls,
        a_CRI: Sequence[torch.Tensor],
        b_COR: Sequence[torch.Tensor],
        dtype: torch.dtype,
        threshold_CR: torch.Tensor,
    ) -> Product:
        """From one adapter's A and B of each slice, in the dtype of the layer's output.

        A rank below ``max_lora_rank`` and a module that the adapter leaves alone are zeros in vLLM's tensors.
        """
        A_UI, B_CUO, threshold_U = [], [], []
        for A_RI, B_OR, threshold_R in zip(a_CRI, b_COR, threshold_CR, strict=True):
            kept_R = A_RI.any(1) | B_OR.any(0)
            threshold_U.append(threshold_R[kept_R])
            A_UI.append(A_RI[kept_R].to(dtype))
            B_CUO.append(B_OR.T[kept_R].to(dtype).contiguous())
        units = [len(B_UO) for B_UO in B_CUO]
        rows = _ranges(units)
        if 0 < sum(units) <= FEW_UNITS:
            blocks = [(slice(None), slice(None), torch.block_diag(*B_CUO))]
        else:
            columns = _ranges([B_UO.shape[1] for B_UO in B_CUO])
            blocks = [part for part in zip(columns, rows, B_CUO, strict=True) if len(part[2])]
        return cls(torch.cat(A_UI).T.contiguous(), tuple(blocks), tuple(rows), torch.cat(threshold_U))


FEW_UNITS = 48  # up to here one product with a block-diagonal B is faster than one a slice


class Joined(NamedTuple):
    """The products of several adapters side by side.

    Attributes:
        A_IU: their A.
        B_UO: their B, one below the other.
        slot_U: the slot of each unit's adapter.
        bounds_2U: of each unit.
        computed: units, product and activation of the adapters whose activation is more than a clamp.
    """

    A_IU: torch.Tensor
    B_UO: torch.Tensor
    slot_U: torch.Tensor
    bounds_2U: torch.Tensor
    computed: tuple[tuple[slice, Product, str], ...]

    def activate(self, z_NU: torch.Tensor) -> torch.Tensor:
        """Every adapter's units from its pre-activations."""
        h_NU = torch.clamp(z_NU, *self.bounds_2U)
        for units, product, activation in self.computed:
            h_NU[:, units] = product.activate(z_NU[:, units], activation)
        return h_NU

    @classmethod
    def of(cls, groups: Sequence[Group], products: Sequence[Product], outputs: int) -> Joined | None:
        """None where an adapter's slices are multiplied apart, or where zero times a B may not be zero."""
        parts = [(group, product) for group, product in zip(groups, products, strict=True) if product.expands]
        B_CUO = [B_UO for _, product in parts for *_, B_UO in product.expands]
        units = [product.A_IU.shape[1] for _, product in parts]
        if not parts or [B_UO.shape for B_UO in B_CUO] != [(count, outputs) for count in units]:
            return None
        if not all(B_UO.isfinite().all() for B_UO in B_CUO):
            return None
        repeats = torch.tensor(units)
        bounds_2C = torch.tensor([row_bounds(group.activation) for group, _ in parts], dtype=B_CUO[0].dtype).T
        computed = [
            (rows, product, group.activation)
            for rows, (group, product) in zip(_ranges(units), parts, strict=True)
            if not is_clamp(group.activation)
        ]
        return cls(
            torch.cat([product.A_IU for _, product in parts], 1),
            torch.cat(B_CUO),
            torch.tensor([group.slot for group, _ in parts]).repeat_interleave(repeats),
            bounds_2C.repeat_interleave(repeats, 1),
            tuple(computed),
        )


def _ranges(sizes: Sequence[int]) -> list[slice]:
    ends = list(itertools.accumulate(sizes, initial=0))
    return [slice(start, end) for start, end in itertools.pairwise(ends)]
