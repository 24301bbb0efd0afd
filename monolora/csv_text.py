"""CSV for spreadsheets: a name that begins like a formula is a text there too."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from monolora.errors import printable

_BEGINS_A_FORMULA = ("=", "+", "-", "@", "\t")


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV. Texts that a spreadsheet would run as a formula get an apostrophe in front; numbers stay numbers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows(list(map(_as_text, row)) for row in rows)
    return out.getvalue()


def _as_text(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    cell = printable(cell)
    if not cell.startswith(_BEGINS_A_FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
