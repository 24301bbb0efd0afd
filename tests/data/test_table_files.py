"""Files are read as they are, or refused with their row and line."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from monolora.data.table_files import read_csv, read_json_rows, read_table
from monolora.errors import InputError


def _write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_cells_stay_the_texts_that_they_are(tmp_path: Path) -> None:
    rows = [
        {"instruction": "NA", "output": "4.50"},
        {"instruction": "a, b\nc", "output": 'say "yes"'},
        {"instruction": "", "output": "None"},
        {"instruction": "größe", "output": "x" * 200_000},
    ]
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8-sig") as file:  # with the BOM of a spreadsheet
        writer = csv.DictWriter(file, ["instruction", "output"])
        writer.writeheader()
        writer.writerows(rows)
        file.write("\r\n\r\n")
    assert read_csv(tmp_path / "rows.csv").to_list() == rows


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("instruction,output\na,b,\n", r"row 1 \(line 2\) has 3 fields, and the header has 2"),
        ("instruction,output\na, then b,c\n", r"row 1 \(line 2\) has 3 fields"),
        ('instruction,output\n"a\nb",c\nd\n', r"row 2 \(line 4\) has 1 fields"),
        ("instruction,input,output\na,b,c\nd,e\n", r"row 2 \(line 3\) has 2 fields, and the header has 3"),
        ("instruction,output\na,b\nc,d\ne,f,g,h\n", r"row 3 \(line 4\) has 4 fields"),
        ('instruction,output\na,"b\nc,d\n', r"row 1 \(to line 3\): unexpected end of data"),
        ('instruction,output\na,"b" c\n', r"row 1 \(to line 2\): .*double those inside"),
        ("output,instruction,output\na,b,c\n", r"the header has the column 'output' twice"),
        ("a,,\n1,2,3\n", r"the header has the column '' twice"),
        ("a,b\nx,größe\n".encode("latin1"), r"line 2 is not UTF-8\. Convert"),
        ("a,b\nx,y\n".encode("utf-16"), r"line 1 is not UTF-8"),
    ],
)
def test_rows_that_do_not_fit_the_header(tmp_path: Path, content: str | bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_csv(_write(tmp_path, "rows.csv", content))


def test_every_object_keeps_its_own_keys(tmp_path: Path) -> None:
    """A table of structs would fill each object with the keys of all others, and give up on mixed types."""
    rows: list[dict[str, Any]] = [
        {"a": "x", "m": [{"call": {"city": "Rome"}}]},
        {"a": "y", "m": [{"call": {"n": 1}}, {"call": {"n": None}}], "later": True},
        {"a": "z", "m": "text", "later": None},
    ]
    lines = "\n\n".join(json.dumps(row) for row in rows)
    wanted = [{"later": None, **row} for row in rows]
    assert read_json_rows(_write(tmp_path, "rows.jsonl", lines)).to_list() == wanted
    assert read_json_rows(_write(tmp_path, "rows.json", f"\ufeff{json.dumps(rows, indent=1)}\n")).to_list() == wanted


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"a": 1}\n{"a": \n', r"line 2: JSON parse error"),
        ('{"a": 1}\n\n\n{"a": 1]\n', r"line 4: JSON parse error"),
        ('[{"a": 1},\n {"a": 1}\n {"a": 1}]', r"line 3: JSON parse error"),
        ('{"a": 1}\n[2]\n', r"line 2 is no object"),
        ('[{"a": 1}, 2]', r"row 2 is no object"),
        ('{"a": 1}\n{"a": 1, "a": 2}\n', r"line 2: .*the key 'a' stands twice"),
        (r'{"a": "\ud83d"}', r"line 1: .*surrogate pair"),
        ("[" * 100_000, r"line 1: .*too many levels"),
        (b'{"a": 1}\n{"a": "\xe9"}\n', r"line 2 is not UTF-8"),
    ],
)
def test_what_is_no_json_is_refused_by_line(tmp_path: Path, content: str | bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_json_rows(_write(tmp_path, "rows.jsonl", content))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_header_says_what_divides_cells(tmp_path: Path, delimiter: str) -> None:
    rows = [{"question": "a, b; c|d\te", "answer": 'say "1,5"'}, {"question": "x\ny", "answer": ""}]
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    assert read_csv(tmp_path / "rows.csv").to_list() == rows


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("a, b;c\n1;2\n", [{"a, b": "1", "c": "2"}]),  # by commas the row would have one field
        ("a;b\n1,5;2,5\n", [{"a": "1,5", "b": "2,5"}]),
        ("text\n1;2\n", [{"text": "1;2"}]),
        ('"a;b",c\n1,2\n', [{"a;b": "1", "c": "2"}]),
    ],
)
def test_a_delimiter_must_fit_every_row(tmp_path: Path, content: str, rows: list[dict[str, str]]) -> None:
    assert read_csv(_write(tmp_path, "rows.csv", content)).to_list() == rows


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.csv", "a;b\n1;2\n3;4;5\n", r"row 2 \(line 3\) has 3 fields, .*around a text with semicolons"),
        ("rows.csv", "a;b\n1,2\n", r"row 1 \(line 2\) has 1 fields, and the header has 2"),
        ("rows.csv", "a,x;b\n1,y;2\n", "commas and semicolons both divide the header, and every row as well"),
        ("rows.csv", "a,x;b;c\n1;2\n", r"row 1 \(line 2\) has 2 fields, and the header has 3.*semicolons"),
        ("rows.tsv", "a\tb\n1\t2\t3\n", r"row 1 \(line 2\) has 3 fields, .*around a text with tabs"),
        ("rows.tsv", "a,b\n1\t2\n", r"row 1 \(line 2\) has 2 fields, and the header has 1"),
    ],
)
def test_a_wrong_guess_is_refused_with_the_row(tmp_path: Path, name: str, content: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_table(_write(tmp_path, name, content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl.gz", gzip.compress(b'{"a": "x"}\n' * 99, mtime=0)[:-9]),
        ("rows.jsonl.gz", b'{"a": "x"}\n'),
        ("rows.json.zst", pa.compress(b'{"a": "x"}\n' * 99, codec="zstd", asbytes=True)[:-3]),
        ("rows.json.zst", gzip.compress(b'{"a": "x"}\n', mtime=0)),
    ],
)
def test_what_cannot_be_unpacked(tmp_path: Path, name: str, content: bytes) -> None:
    path = _write(tmp_path, name, content)
    with pytest.raises(InputError, match=rf"Cannot unpack .*{name}: .*its name says how it is packed"):
        read_table(path)
