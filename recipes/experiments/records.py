"""A step's record: the settings and the inputs that its results are of, where they come from, and the results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from typing_extensions import TypedDict

from monolora.errors import InputError, SaveError
from monolora.provenance import provenance
from monolora.runs import write_json
from monolora.text_files import read_json


class _Record(TypedDict):
    """What steps read of each other."""

    settings: dict[str, Any]
    inputs: dict[str, str]
    results: dict[str, Any]


def write(path: Path, settings: Mapping[str, Any], inputs: Mapping[str, str], results: Mapping[str, Any]) -> None:
    """Write a step's record.

    Args:
        path: its file; the folder is made.
        settings: of the step, as JSON values.
        inputs: fingerprints of what it worked on, by what it is.
        results: as JSON values.

    Raises:
        SaveError: if the disk does not take it.
    """
    record = {"settings": _plain(settings), "inputs": dict(inputs), "provenance": provenance(), "results": results}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    except OSError as error:
        raise SaveError.of(path.parent, error, "Free space, then give the same command again.") from error


def read(path: Path, mend: str) -> dict[str, Any]:
    """A step's record.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    if not path.is_file():
        raise InputError(f"There is no {path}. {mend}")
    try:
        return cast(dict[str, Any], read_json(path, f"Delete it. {mend}", _Record))
    except InputError as error:
        raise InputError(f"{path} is damaged: {str(error).removeprefix(f'{path} is damaged: ')}") from error


def results_if_same(path: Path, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any] | None:
    """The results in ``path``, if they are of these settings and inputs; else None, and the step is to be done."""
    if not path.is_file():
        return None
    record = read(path, "The step is done again then.")
    same = record["settings"] == _plain(settings) and record["inputs"] == dict(inputs)
    return cast(dict[str, Any], record["results"]) if same else None


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back."""
    return cast(dict[str, Any], json.loads(json.dumps(dict(settings))))
