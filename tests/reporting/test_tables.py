"""CSV that a spreadsheet opens without running any of it."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from monolora.reporting.tables import csv_text


@pytest.mark.parametrize(
    ("cell", "read"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'=1"),
        ('=HYPERLINK("http://a","b")', '\'=HYPERLINK("http://a","b")'),
        ("-1.5", "-1.5"),
        ("+3e-5", "+3e-5"),
        ("-inf", "-inf"),
        (-1.5, "-1.5"),
        (None, ""),
        ("a=b, c", "a=b, c"),
        ("– 0.3", "– 0.3"),
        ("", ""),
    ],
)
def test_cells(cell: Any, read: str) -> None:
    text = csv_text([["name", "value"], [cell, 1]])
    assert list(csv.reader(io.StringIO(text, newline=""))) == [["name", "value"], [read, "1"]]


def test_columns_names_too() -> None:
    assert csv_text([["=a", "b"]]) == "'=a,b\n"
