"""Data sets by id, as tables: from a file, a folder, the local mirror or the hub.

CSV and JSON files are read here and not by `datasets`, which would take "NA" for missing, 4.50 for 4.5, and shift the
cells of a row that has a field too many.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import datasets
from datasets.packaged_modules.csv.csv import Csv, CsvConfig

from monolora import hub
from monolora.errors import InputError, in_one_line

# What a data set's README may say of its CSV files.
_CSV_SETTINGS = {"name", "version", "data_dir", "data_files", "description", "features", "sep", "delimiter"}
_T = TypeVar("_T")


def load_dataset(name: str, config: str | None = None) -> datasets.DatasetDict:
    """All splits of the data set ``name``.

    Args:
        name: a hub id, a folder in the hub's layout, or a ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file.
        config: the configuration, for hub data sets that have several.

    Raises:
        InputError: if there is none, it cannot be read, or the hub cannot be reached.
    """
    local = hub.local_path(name)
    if local is not None and Path(local).is_file():
        if config is not None:
            raise InputError(f"{name} is a file and has no configuration {config!r}. Leave --dataset-config out.")
        return _load_file(Path(local))
    if local is None and hub.looks_like_a_path(name):
        raise InputError(f"There is no data set at {name}.")
    if local is None:
        return hub.from_hub(name, lambda: _load_from_hub(name, config), _task_names())
    return _reading(local, "a data set", lambda: _load_folder(local, config))


def _task_names() -> list[str]:
    """The built-in tasks, one of which may be meant by a name that the hub does not know."""
    return [module.name for module in pkgutil.iter_modules([str(Path(__file__).with_name("tasks"))])]


def _load_from_hub(name: str, config: str | None) -> datasets.DatasetDict:
    # Asked for first, because it answers at once where there is no hub; `datasets` tries again for half a minute.
    hub.snapshot_download(name, repo_type="dataset", allow_patterns=["README.md"])
    builder = _reading(name, "a data set", lambda: datasets.load_dataset_builder(name, config))
    if isinstance(builder, Csv):
        folder = hub.snapshot_download(name, repo_type="dataset")
        return _reading(name, "a data set", lambda: _load_folder(folder, config))
    return _reading(name, "a data set", lambda: datasets.load_dataset(name, config))


def _load_folder(folder: str, config: str | None) -> datasets.DatasetDict:
    """As `datasets` loads it, but for CSV files, whose cells it would move where a row has a field too many."""
    builder = datasets.load_dataset_builder(folder, config)
    files = builder.config.data_files or {}
    paths = [Path(file) for of_split in files.values() for file in of_split]
    if not isinstance(builder, Csv):
        return datasets.load_dataset(folder, config)
    packed = next((path for path in paths if path.suffix not in (".csv", ".tsv", ".txt")), None)
    if packed is not None:
        raise InputError(
            f"{packed} is not read: whether its rows have all their fields is checked in text only. Unpack it."
        )
    usual = CsvConfig()
    other = sorted(
        field.name
        for field in fields(usual)
        if field.name not in _CSV_SETTINGS and getattr(builder.config, field.name) != getattr(usual, field.name)
    )
    if other:
        raise InputError(
            f"{folder}/README.md sets {', '.join(other)} for its CSV files, which is not honoured here. Convert them "
            "to CSV with a header, commas and quotes, or to JSON lines or Parquet."
        )
    separator = builder.config.delimiter or builder.config.sep
    tables = {split: [read_csv(Path(file), separator) for file in of_split] for split, of_split in files.items()}
    return datasets.DatasetDict({str(split): datasets.concatenate_datasets(of) for split, of in tables.items()})


def _load_file(path: Path) -> datasets.DatasetDict:
    readers: dict[str, Callable[[Path], datasets.Dataset]] = {
        ".jsonl": read_json_rows,
        ".json": read_json_rows,
        ".csv": read_csv,
    }
    if path.suffix not in (*readers, ".parquet"):
        raise InputError(
            f"{path}: files of type {path.suffix or '(none)'} are not read; use {', '.join((*readers, '.parquet'))}."
        )
    if path.stat().st_size == 0:
        raise InputError(f"The data set {path} is empty.")
    if path.suffix in readers:
        return datasets.DatasetDict(train=readers[path.suffix](path))
    files = {"train": glob.escape(str(path))}  # datasets takes a name for a pattern
    return _reading(str(path), "parquet", lambda: datasets.load_dataset("parquet", data_files=files))


def _reading(where: str, what: str, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except InputError:
        raise
    except (
        datasets.exceptions.DatasetGenerationError,
        datasets.data_files.EmptyDatasetError,
        FileNotFoundError,
        ValueError,
    ) as error:
        reason = in_one_line(error.__cause__ or error)
        if "corresponds to no data" in reason:
            raise InputError(f"The data set {where} is empty.") from error
        raise InputError(f"Cannot read {where} as {what}: {reason}") from error


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
