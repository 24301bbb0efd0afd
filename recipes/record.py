"""``run.json``: what a run was and what it gave, so that every number in a table can be traced to it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState

from monolora.errors import InputError, SaveError, in_one_line
from monolora.provenance import write_json
from monolora.recipes.arguments import Arguments
from monolora.redaction import is_secret_name

FILE = "run.json"
GO_ON = "Earlier checkpoints are whole; free space, then go on with --resume-from-checkpoint."


def resolved_config(arguments: Arguments) -> dict[str, Any]:
    """Every flag with the value it had, as JSON values; secrets left out."""
    training = arguments.training
    merged: dict[str, Any] = training.to_dict()
    for part in (arguments.script, arguments.model, arguments.adapter):
        merged |= vars(part)
    merged = {key: value for key, value in merged.items() if not is_secret_name(key)}
    # to_dict hides these two, and they are no secrets.
    merged |= {"eos_token": training.eos_token, "pad_token": training.pad_token}
    merged["num_processes"] = PartialState().num_processes
    return cast(dict[str, Any], json.loads(json.dumps(merged, default=str)))


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json``.

    Raises:
        SaveError: if the disk does not take it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, record)
    except OSError as error:
        raise SaveError.of(folder, error, GO_ON) from error


def read(folder: Path, mend: str = "Remove the folder, or take another --output-dir.") -> dict[str, Any] | None:
    """The record of the run in ``folder``, or None.

    Raises:
        InputError: if the file is there but is no record.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not JSON: {in_one_line(error)} {mend}") from error
    if not isinstance(found, dict) or not {"config", "results"} <= found.keys():
        raise InputError(f"{path} is no record of a run. {mend}")
    return found


def check_output_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that would mix two runs, or that cannot be made (:func:`no_empty_folder` removes it again).

    Raises:
        InputError: naming the mend.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = any(folder.iterdir())
    except OSError as error:
        raise InputError(f"--output-dir {folder} cannot be made: {error.strerror}. Take another folder.") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"--output-dir {folder} cannot be written to. Take another folder.")
    if not found:
        return
    if not (folder / FILE).is_file():
        raise InputError(f"--output-dir {folder} has files of something else than a run. Take another folder.")
    if not overwrite:
        raise InputError(
            f"--output-dir {folder} holds another run. Take another folder, continue it with "
            "--resume-from-checkpoint, or replace it with --overwrite."
        )


def clear(folder: Path) -> None:
    """Remove the run in ``folder``; :func:`check_output_folder` has made sure that it is one."""
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def no_empty_folder(folder: Path) -> Iterator[None]:
    """Remove, at the end, what of ``folder`` and its parents the block made and left empty.

    The trainer makes its output folder before anything about the data can be checked.
    """
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in absent:
            with suppress(OSError):
                path.rmdir()
