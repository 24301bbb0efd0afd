"""Text that people and programs wrote, read so that what is wrong with it is one line: the file, the place, the fix."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import datasets
from pydantic import TypeAdapter, ValidationError

from monolora.errors import InputError, in_one_line


def read_text(path: str | Path, fix: str = "", *, flag: str = "") -> str:
    """The text in a file, in UTF-8; a byte order mark in front is no part of it.

    Args:
        path: the file.
        fix: what to do where it cannot be read, a sentence.
        flag: that names the file, for messages.

    Raises:
        InputError: if it cannot be read, or is in another encoding (naming the line).
    """
    where = f"{flag} {path}".lstrip()
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # the latter for a name with a null character
        raise InputError(f"Cannot read {where}: {_reason(error)} {fix}".rstrip()) from error
    return decoded(content, where, fix)


def decoded(content: bytes, where: str | Path, fix: str = "") -> str:
    """As :func:`read_text`, of what has been read from ``where``."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{where}, line {line}: the byte 0x{content[error.start]:02x} is not UTF-8. "
            + (fix or "Save the file as UTF-8 (iconv -f latin1 -t utf-8, if it is Latin-1).")
        ) from error


def read_json(path: str | Path, fix: str, kind: Any = dict[str, Any]) -> Any:
    """What a JSON file says, as ``json`` gives it.

    Args:
        path: the file.
        fix: what to do where it cannot be used, a sentence.
        kind: its type, such as a ``TypedDict``; keys that this does not name may be there too.

    Raises:
        InputError: if the file cannot be read, is no JSON (naming line and column), or is not of that type (naming
            the key).
    """
    text = read_text(path, fix)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {in_one_line(error)} {fix}".rstrip()) from error
    if problem := type_problem(value, kind):
        raise InputError(f"{path} is damaged: {problem} {fix}".rstrip())
    return value


def type_problem(value: Any, kind: Any) -> str:
    """What makes ``value`` none of type ``kind``, as a sentence that names the key; empty where nothing does.

    Nothing is converted: "5" and true are no whole numbers. A whole number is a number.
    """
    try:
        _validator(kind).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        said = first["msg"][0].lower() + first["msg"][1:]
        given = "" if first["type"] == "missing" else f", got {_short(first['input'])}"
        return f"{f'{key}: ' if key else ''}{said}{given}."
    return ""


_validator = cache(TypeAdapter)  # made once a type: that takes longer than its use


def _short(value: Any) -> str:
    """A mapping or list, which may be huge, by its kind."""
    if isinstance(value, (Mapping, list, tuple)):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _reason(error: Exception) -> str:
    return f"{error.strerror}." if isinstance(error, OSError) and error.strerror else in_one_line(error)


_INT64 = range(-(2**63), 2**63)


def read_csv(path: Path, delimiter: str = ",") -> datasets.Dataset:
    """The rows of a CSV file with a header; every cell is a text: "4.50" is no number, "None" and "NA" are not missing.

    Raises:
        InputError: if it is not UTF-8, a name stands twice in the header, quotes do not match, or a row has another
            number of fields than the header.
    """
    csv.field_size_limit(sys.maxsize)  # of the process; documents may be longer than 128 KiB
    lines = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    number = 0
    try:
        header = next((fields for fields in lines if fields), [])
        columns: dict[str, list[Any]] = {name: [] for name in header}
        if len(columns) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise InputError(f"{path}: the header has the column {twice!r} twice. Rename one of them.")
        for number, fields in enumerate(filter(None, lines), start=1):  # without empty lines
            if len(fields) != len(header):
                raise InputError(
                    f"{path}, row {number} (line {lines.line_num}) has {len(fields)} fields, and the header has "
                    f"{len(header)}. Put quotes around a text with commas, or correct the row."
                )
            for values, cell in zip(columns.values(), fields, strict=True):
                values.append(cell)
    except csv.Error as error:
        raise InputError(
            f"Cannot read {path} as csv: row {number + 1} (to line {lines.line_num}): {error}. Close each quote, and "
            "double those inside a quoted text."
        ) from error
    return _table(columns)


def read_json_rows(path: Path) -> datasets.Dataset:
    """The rows of a JSON file: an object a line, or a list of objects.

    Raises:
        InputError: if it is not UTF-8 or not such JSON, with the line.
    """
    text = _text(path)
    rows = list(_listed(path, text) if text.lstrip().startswith("[") else _lines(path, text))
    return _table({key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)})


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line} is not UTF-8. Convert the file, for example with iconv -f latin1 -t utf-8."
        ) from error


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
