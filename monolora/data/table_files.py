"""Tables in files: CSV and TSV, JSON and JSON lines, plain or packed with gzip or zstd.

They are read here and not by `datasets`, which would take "NA" for missing, 4.50 for 4.5, and shift the cells of a row
that has a field too many.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from monolora.errors import InputError, in_one_line

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
PACKED = (".gz", ".zst")
READ = (".csv", ".tsv", ".json", ".jsonl")


def kind(path: Path) -> str:
    """The suffix that says what a file holds, without that of its packing: ``.jsonl`` of ``rows.jsonl.gz``."""
    return (path.with_suffix("") if path.suffix in PACKED else path).suffix


def read_table(path: Path) -> datasets.Dataset:
    """The rows of a file whose :func:`kind` is one of :data:`READ`.

    Raises:
        InputError: naming the row or line that is not understood.
    """
    if kind(path) in (".json", ".jsonl"):
        return read_json_rows(path)
    return read_csv(path, "\t" if kind(path) == ".tsv" else None)


_INT64 = range(-(2**63), 2**63)


def read_csv(path: Path, delimiter: str | None = None) -> datasets.Dataset:
    """The rows of a CSV file with a header; every cell is a text: "4.50" is no number, "None" and "NA" are not missing.

    Args:
        path: the file.
        delimiter: what divides its cells; by default one of :data:`DELIMITERS`, the one that divides the header.

    Raises:
        InputError: if it is not UTF-8, a name stands twice in the header, quotes do not match, a row has another number
            of fields than the header, or two delimiters fit.
    """
    csv.field_size_limit(sys.maxsize)  # of the process; documents may be longer than 128 KiB
    text = _text(path)
    if delimiter is None:
        delimiter = _delimiter(path, text)
    lines = _cells(text, delimiter)
    number = 0
    try:
        header: list[str] = next((fields for fields in lines if fields), [])
        columns: dict[str, list[Any]] = {name: [] for name in header}
        if len(columns) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise InputError(f"{path}: the header has the column {twice!r} twice. Rename one of them.")
        for number, fields in enumerate(filter(None, lines), start=1):  # without empty lines
            if len(fields) != len(header):
                raise InputError(
                    f"{path}, row {number} (line {lines.line_num}) has {len(fields)} fields, and the header has "
                    f"{len(header)}. Put quotes around a text with {DELIMITERS.get(delimiter, repr(delimiter))}, or "
                    "correct the row."
                )
            for values, cell in zip(columns.values(), fields, strict=True):
                values.append(cell)
    except csv.Error as error:
        raise InputError(
            f"Cannot read {path} as csv: row {number + 1} (to line {lines.line_num}): {error}. Close each quote, and "
            "double those inside a quoted text."
        ) from error
    return _table(columns)


def _cells(text: str, delimiter: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)


def _delimiter(path: Path, text: str) -> str:
    """The delimiter of the header; where several are in it, the one by which all rows have as many fields.

    A column's name seldom holds one, and texts hold commas often: that is why the header decides.
    """
    widths = {delimiter: _width(text, delimiter, header_only=True) for delimiter in DELIMITERS}
    dividing = [delimiter for delimiter, width in widths.items() if width > 1]
    if len(dividing) < 2:
        return next(iter(dividing), ",")
    fitting = [delimiter for delimiter in dividing if _width(text, delimiter, header_only=False)]
    if len(fitting) > 1:
        first, second = (DELIMITERS[delimiter] for delimiter in fitting[:2])
        raise InputError(
            f"{path}: {first} and {second} both divide the header, and every row as well. Put quotes around the names "
            "and texts that hold one of them."
        )
    return next(iter(fitting), max(dividing, key=lambda delimiter: widths[delimiter]))


def _width(text: str, delimiter: str, header_only: bool) -> int:
    """The fields of the header, or of every row; 0 where rows differ or quotes do not match."""
    lines = filter(None, _cells(text, delimiter))
    try:
        width = len(next(lines, []))
        return width if header_only or all(len(fields) == width for fields in lines) else 0
    except csv.Error:
        return 0


def read_json_rows(path: Path) -> datasets.Dataset:
    """The rows of a JSON file: an object a line, or a list of objects.

    Raises:
        InputError: if it is not UTF-8 or not such JSON, with the line.
    """
    text = _text(path)
    rows = list(_listed(path, text) if text.lstrip().startswith("[") else _lines(path, text))
    return _table({key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)})


def _text(path: Path) -> str:
    content = _unpacked(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line} is not UTF-8. Convert the file, for example with iconv -f latin1 -t utf-8."
        ) from error


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        if path.suffix == ".gz":
            return gzip.decompress(content)
        if path.suffix == ".zst":
            return pa.CompressedInputStream(pa.BufferReader(content), "zstd").read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"Cannot unpack {path}: {in_one_line(error).rstrip('.')}. Copy the file again; its name says how it is "
            "packed."
        ) from error
    return content


def _listed(path: Path, text: str) -> Iterator[dict[str, Any]]:
    rows = _parsed(path, text, 1)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"Cannot read {path} as JSON: row {number} is no object. Write a list of objects.")
        yield row


def _lines(path: Path, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = _parsed(path, line, number)
            if not isinstance(row, dict):
                raise InputError(f"Cannot read {path} as JSON: line {number} is no object. Write one object a line.")
            yield row


def _parsed(path: Path, text: str, first_line: int) -> Any:
    """Raises: InputError, naming the line."""
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        line, reason = first_line + error.lineno - 1, f"{error.msg} (column {error.colno})"
    except UnicodeEncodeError:
        line, reason = first_line, "half of a surrogate pair is no character"
    except RecursionError:
        line, reason = first_line, "too many levels"
    except ValueError as error:
        line, reason = first_line, str(error)
    raise InputError(f"Cannot read {path} as JSON: line {line}: JSON parse error: {reason}. Correct the line.")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return row


def _table(columns: dict[str, list[Any]]) -> datasets.Dataset:
    features = datasets.Features({name: _feature(values) for name, values in columns.items()})
    return datasets.Dataset.from_dict(columns, features=features)


def _feature(values: Iterable[Any]) -> Any:
    """Of a column; what is nested or mixed is stored as JSON, which keeps each object's own keys."""
    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    if kinds <= {str}:
        return datasets.Value("string")
    if kinds == {bool}:
        return datasets.Value("bool")
    if kinds == {int} and all(value in _INT64 for value in present):
        return datasets.Value("int64")
    if kinds == {float}:
        return datasets.Value("float64")
    return datasets.Json()
