"""Lookups in the results, as every form of the report shows them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from monolora.eval.measures.table import PERCENT, Column
from monolora.reporting.numbers import (
    NOTHING,
    decimals,
    decimals_of_small,
    format_change,
    format_interval,
    format_number,
    plain,
)

KEPT = "still refused"
"""The metric of the base's refusals that a model keeps."""

ALPHA = 0.05
"""A difference is marked where its p, after Holm's correction, is below this."""

HEADLINE_DIGITS = 2  # as the paper's table 2 has them

MARK = "*"


class View:
    """Lookups in the results that every form of the report shares.

    Args:
        results: the content of ``results.json``.
    """

    def __init__(self, results: Mapping[str, Any]) -> None:
        self.results = results
        self.models: list[str] = [model["name"] for model in results["models"]]
        self.base = self.models[0]
        self.columns = [Column.read(column) for column in results["columns"]]
        self.headline = [column for column in self.columns if column.headline]
        self.others = [column for column in self.columns if not column.headline]
        self._against = {(row["column"], row["model"], row["against"]): row for row in results["differences"]}

    @cached_property
    def harm(self) -> list[Column]:
        """The headline columns of judges of harm."""
        judges = {judge["name"] for judge in self.results["judges"] if judge["kind"] == "harm"}
        return [column for column in self.headline if column.judge in judges]

    @cached_property
    def _digits(self) -> dict[str, int]:
        cells = self.results["cells"]
        return {
            column.id: max(
                (decimals if column.unit == PERCENT else decimals_of_small)(
                    cell["value"] for row in cells.values() if (cell := row.get(column.id))
                ),
                HEADLINE_DIGITS if column.headline else 0,
            )
            for column in self.columns
        }

    @cached_property
    def _by_id(self) -> dict[str, Column]:
        return {column.id: column for column in self.columns}

    def digits(self, column: str) -> int:
        """Decimals that the column is shown with."""
        return self._digits[column]

    def column(self, name: str) -> Column:
        """The column with this id."""
        return self._by_id[name]

    def cell(self, model: str, column: str) -> dict[str, Any] | None:
        """Value, low, high, n and invalid; None where this was not measured or nothing valid is left of it."""
        cell = self.results["cells"].get(model, {}).get(column)
        return None if cell is None or cell["value"] is None else cell

    def difference(self, model: str, column: str) -> dict[str, Any] | None:
        """The model minus the base, or None."""
        return self._against.get((column, model, self.base))

    def between(self, model: str, against: str, column: str) -> dict[str, Any] | None:
        """The difference of two models, in the order in which it was taken, or None."""
        return self._against.get((column, model, against)) or self._against.get((column, against, model))

    def value(self, model: str, column: str) -> str:
        """The value as it is shown, or a dash."""
        cell = self.cell(model, column)
        return NOTHING if cell is None else format_number(cell["value"], self.digits(column))

    def interval(self, model: str, column: str) -> str:
        """The interval as it is shown, or nothing."""
        cell = self.cell(model, column)
        return "" if cell is None else format_interval(cell["low"], cell["high"], self.digits(column))

    def marked(self, model: str, column: str) -> bool:
        """Whether the model differs from the base in this column, after Holm's correction."""
        return is_significant(self.difference(model, column))

    def reading(self, difference: Mapping[str, Any] | None) -> str:
        """``better``, ``worse`` or ``other`` for a significant difference, else an empty word."""
        if difference is None or not is_significant(difference) or not difference["difference"]:
            return ""
        better = self.column(difference["column"]).better
        if better is None:
            return "other"
        return "better" if (difference["difference"] > 0) == (better == "higher") else "worse"

    def change(self, difference: Mapping[str, Any]) -> str:
        """The difference as it is shown."""
        return format_change(difference["difference"], self.digits(difference["column"]))

    def change_interval(self, difference: Mapping[str, Any]) -> str:
        """The interval of the difference as it is shown, or nothing."""
        digits = self.digits(difference["column"])
        return format_interval(difference["low"], difference["high"], digits, changes=True)

    def full_title(self, column: Column) -> str:
        """Group and title: the title alone may stand for several judges."""
        group, title = plain(column.group), plain(column.title)
        return title if group in ("", title) else f"{group} {title}"


def is_significant(difference: Mapping[str, Any] | None) -> bool:
    """Whether p after Holm's correction is below :data:`ALPHA`."""
    return difference is not None and difference["p_holm"] is not None and difference["p_holm"] < ALPHA


def unit(column: Column) -> str:
    """How a difference in this column is counted: percent values differ by points."""
    return "points" if column.unit == PERCENT else column.unit


def kept(cell: Mapping[str, Any]) -> tuple[int, int]:
    """How many of the base's refusals a cell of "still refused" stands for, and of how many."""
    return round(cell["value"] * cell["n"] / 100), cell["n"]


def kept_refusals(view: View) -> Column | None:
    """The first column of the base's refusals that models keep, of the safety sets first; None if there is none."""
    columns = (column for column in view.columns if column.metric == KEPT)
    return next((each for each in columns if any(view.cell(model, each.id) for model in view.models[1:])), None)
