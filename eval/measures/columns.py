"""What a column of the table is, and what stands in its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolora.data.prompt_sets import Prompt

MCNEMAR, BOOTSTRAP = "mcnemar", "bootstrap"
PERCENT = "%"

Cell = dict[str, Any]
"""``value``, ``low``, ``high`` (None where unknown), ``n`` and ``invalid``; sparsity's has ``units`` and ``dead_units``
too."""


class Column(NamedTuple):
    """The head of a column.

    Attributes:
        id: distinct within the table.
        title: for people.
        group: what stands over the title; may be empty.
        set: name of the prompt set.
        better: ``lower``, ``higher``, or None where neither is.
        unit: of value, interval and differences: ``%``, ``tokens`` or nothing.
        test: of two models' difference: ``mcnemar`` for flags, ``bootstrap`` for means, or None.
        headline: whether it is one of the columns of the paper's table 2.
        of_base: whether the base has a value of its own; a drift from it has none.
    """

    id: str
    title: str
    group: str
    set: str
    better: str | None = None
    unit: str = PERCENT
    test: str | None = None
    headline: bool = False
    of_base: bool = True


class Measured(NamedTuple):
    """A column of means over prompts.

    Attributes:
        column: its head.
        prompts: those that it is over.
        values: in the column's unit, flags as 0 and 100; NaN for what is invalid. Shape ``(models, prompts)``.
    """

    column: Column
    prompts: Sequence[Prompt]
    values: NDArray[np.float64]

    @property
    def is_flag(self) -> bool:
        """Whether its values are flags, 0 or 100."""
        return self.column.test == MCNEMAR


class Whole(NamedTuple):
    """A column of numbers that are no means over prompts: cells by model, None where there is nothing to measure."""

    column: Column
    cells: Mapping[str, Cell | None]


def weights(prompts: Sequence[Prompt]) -> NDArray[np.float64]:
    """How many rows of the set each prompt stands for."""
    return np.array([prompt.weight for prompt in prompts], np.float64)


def cell(value: float | None, n: int, invalid: int, low: float | None = None, high: float | None = None) -> Cell:
    """A cell; ``n`` and ``invalid`` are rows of the set, a prompt counted as often as it has the prompt."""
    return {"value": value, "low": low, "high": high, "n": n, "invalid": invalid}
