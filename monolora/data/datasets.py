"""Data sets by id, as tables: from a file, a folder, the local mirror or the hub."""

from __future__ import annotations

import glob
import pkgutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import datasets
from datasets.packaged_modules.csv.csv import Csv, CsvConfig

from monolora import hub
from monolora.data.table_files import PACKED, READ, kind, read_csv, read_table
from monolora.errors import InputError, in_one_line

# What a data set's README may say of its CSV files.
_CSV_SETTINGS = {"name", "version", "data_dir", "data_files", "description", "features", "sep", "delimiter"}
_T = TypeVar("_T")


def load_dataset(name: str, config: str | None = None) -> datasets.DatasetDict:
    """All splits of the data set ``name``.

    Args:
        name: a hub id, a folder in the hub's layout or made by ``save_to_disk``, or a ``.jsonl``, ``.json``, ``.csv``,
            ``.tsv`` or ``.parquet`` file; all but the last may be packed (``.gz``, ``.zst``).
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
        raise InputError(f"There is no data set at {name}. Check the path.")
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
    if any((Path(folder) / name).is_file() for name in _SAVED):
        return _load_saved(folder, config)
    builder = datasets.load_dataset_builder(folder, config)
    files = builder.config.data_files or {}
    if not isinstance(builder, Csv):
        return datasets.load_dataset(folder, config)
    paths = [Path(file) for of_split in files.values() for file in of_split]
    packed = next((path for path in paths if kind(path) not in (".csv", ".tsv", ".txt")), None)
    if packed is not None:
        raise InputError(
            f"{packed} is not read: whether its rows have all their fields is checked in text, {' and '.join(PACKED)} "
            "only. Unpack it."
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
    given = None if separator == usual.sep else separator  # a comma is what stands there without a word of the README
    tables = {split: [read_csv(Path(file), given) for file in of_split] for split, of_split in files.items()}
    return datasets.DatasetDict({str(split): datasets.concatenate_datasets(of) for split, of in tables.items()})


_SAVED = ("dataset_dict.json", "state.json")  # of a DatasetDict and of a Dataset


def _load_saved(folder: str, config: str | None) -> datasets.DatasetDict:
    """What ``save_to_disk`` wrote; a single split is taken for ``train``, as a file is."""
    if config is not None:
        raise InputError(
            f"{folder} was made by save_to_disk and has no configuration {config!r}. Leave --dataset-config out."
        )
    try:
        saved = datasets.load_from_disk(folder).with_format(None)  # cells as they are, not as tensors
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"Cannot read {folder}, which was made by save_to_disk: {in_one_line(error)} Copy it again."
        ) from error
    return saved if isinstance(saved, datasets.DatasetDict) else datasets.DatasetDict(train=saved)


def _load_file(path: Path) -> datasets.DatasetDict:
    if kind(path) not in READ and path.suffix != ".parquet":
        raise InputError(
            f"{path}: files of type {path.suffix or '(none)'} are not read; use {', '.join((*READ, '.parquet'))}, or "
            f"one of the first {len(READ)} packed as {' or '.join(PACKED)}."
        )
    if path.stat().st_size == 0:
        raise InputError(f"The data set {path} is empty.")
    if kind(path) in READ:
        return datasets.DatasetDict(train=read_table(path))
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
