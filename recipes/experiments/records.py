"""A step's record: the settings and the inputs that its results are of, where they come from, and the results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from monolora.errors import InputError, SaveError, in_one_line
from monolora.provenance import provenance
from monolora.runs import write_json


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
        found = json.loads(path.read_text())
        if not {"settings", "inputs", "results"} <= found.keys():
            raise ValueError("it is no record of a step")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {in_one_line(error)} Delete it. {mend}") from error
    return cast(dict[str, Any], found)


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
