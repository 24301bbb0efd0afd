"""The results as the report looks things up in them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from monolora.eval.report.numbers import NOTHING, decimals, plain, shown, shown_change, shown_interval

ALPHA = 0.05
"""A difference is marked where its p, after Holm's correction, is below this."""

HEADLINE_PLACES = 2  # as the paper's table 2 has them

MARK = "*"


class View:
    """Questions that every form of the report asks.

    Args:
        results: what ``results.json`` holds.
    """

    def __init__(self, results: Mapping[str, Any]) -> None:
        self.results = results
        self.models: list[str] = [model["name"] for model in results["models"]]
        self.base = self.models[0]
        self.columns: list[dict[str, Any]] = results["columns"]
        self.headline = [column for column in self.columns if column["headline"]]
        self.others = [column for column in self.columns if not column["headline"]]
        self._against = {(each["column"], each["model"], each["against"]): each for each in results["differences"]}

    @cached_property
    def harm(self) -> list[dict[str, Any]]:
        """The headline columns that a judge of harm gave."""
        judges = [judge["name"] for judge in self.results["judges"] if judge["kind"] == "harm"]
        return [column for column in self.headline if any(f"/{name}/" in column["id"] for name in judges)]

    @cached_property
    def _places(self) -> dict[str, int]:
        cells = self.results["cells"]
        return {
            column["id"]: max(
                decimals(cell["value"] for row in cells.values() if (cell := row.get(column["id"]))),
                HEADLINE_PLACES if column["headline"] else 0,
            )
            for column in self.columns
        }

    def places(self, column: str) -> int:
        """Decimals that the column is shown with."""
        return self._places[column]

    def column(self, name: str) -> dict[str, Any]:
        """The column with this id."""
        return next(column for column in self.columns if column["id"] == name)

    def cell(self, model: str, column: str) -> dict[str, Any] | None:
        """Value, low, high, n and invalid; None where this was not measured or nothing valid is left of it."""
        cell = self.results["cells"].get(model, {}).get(column)
        return None if cell is None or cell["value"] is None else cell

    def difference(self, model: str, column: str) -> dict[str, Any] | None:
        """The model minus the base, or None."""
        return self._against.get((column, model, self.base))

    def value(self, model: str, column: str) -> str:
        """The value as it is shown, or a dash."""
        cell = self.cell(model, column)
        return NOTHING if cell is None else shown(cell["value"], self.places(column))

    def interval(self, model: str, column: str) -> str:
        """The interval as it is shown, or nothing."""
        cell = self.cell(model, column)
        return "" if cell is None else shown_interval(cell["low"], cell["high"], self.places(column))

    def marked(self, model: str, column: str) -> bool:
        """Whether the model differs from the base in this column, after Holm's correction."""
        return is_significant(self.difference(model, column))

    def reading(self, difference: Mapping[str, Any] | None) -> str:
        """``better``, ``worse`` or ``other`` for a significant difference, else an empty word."""
        if difference is None or not is_significant(difference) or not difference["difference"]:
            return ""
        better = self.column(difference["column"])["better"]
        if better is None:
            return "other"
        return "better" if (difference["difference"] > 0) == (better == "higher") else "worse"

    def change(self, difference: Mapping[str, Any]) -> str:
        """The difference as it is shown."""
        return shown_change(difference["difference"], self.places(difference["column"]))

    def change_interval(self, difference: Mapping[str, Any]) -> str:
        """The interval of the difference as it is shown, or nothing."""
        places = self.places(difference["column"])
        return shown_interval(difference["low"], difference["high"], places, changes=True)

    def full_title(self, column: Mapping[str, Any]) -> str:
        """Group and title: the title alone may stand for several judges."""
        group, title = plain(column["group"] or ""), plain(column["title"])
        return title if group in ("", title) else f"{group} {title}"


def is_significant(difference: Mapping[str, Any] | None) -> bool:
    """Whether p after Holm's correction is below :data:`ALPHA`."""
    return difference is not None and difference["p_holm"] is not None and difference["p_holm"] < ALPHA


def unit(column: Mapping[str, Any]) -> str:
    """How a difference in this column is counted: percent values differ by points."""
    return "points" if column["unit"] == "%" else str(column["unit"])
