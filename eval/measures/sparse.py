"""Columns of the adapters' sparsity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monolora.eval.measures.columns import Cell, Column, Whole, cell
from monolora.eval.measures.model import Model

ALIGNMENT = "alignment"

Sparsities = Mapping[tuple[str, str], Mapping[str, Any]]
"""By model name and ``alignment`` or the task's set: ``zeros`` (0 to 1), ``dead_units``, ``units``, ``tokens``."""


def sparsity_columns(
    models: Sequence[Model], sparsity: Sparsities, titles: Mapping[str, str], safety_set: str
) -> Iterator[Whole]:
    """Share of zeros among the units' activations, where any model has units.

    Args:
        models: of the run; the base and whole models have no units, and an empty cell.
        sparsity: what was measured.
        titles: of the columns, by ``alignment`` or the task's set.
        safety_set: the set that ``alignment`` is measured on.
    """
    for text, title in titles.items():
        cells = {model.name: _cell(sparsity.get((model.name, text))) for model in models}
        if any(cells.values()):
            on = safety_set if text == ALIGNMENT else text
            yield Whole(Column(f"sparsity/{text}", title, "", on, headline=True), cells)


def _cell(measured: Mapping[str, Any] | None) -> Cell | None:
    if measured is None:
        return None
    units = {"dead_units": measured["dead_units"], "units": measured["units"]}
    return cell(100 * measured["zeros"], measured["tokens"], 0) | units
