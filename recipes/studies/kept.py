"""The records of a study without its weights and texts: what can be published, with all links of the report whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from monolora.errors import InputError, SaveError
from monolora.recipes.studies.report import REPORT
from monolora.recipes.studies.settings import Study

_MADE = Path("report") / REPORT


def keep_records(study: Study, folder: Path) -> None:
    """Copy the report, every ``run.json``, and what was run for how long; an earlier copy is replaced.

    Args:
        study: one that is done.
        folder: where to; it gets the study's own layout.

    Raises:
        InputError: if something else is there.
        SaveError: if the disk does not take it.
    """
    if folder.exists() and not (folder / _MADE).is_file():
        raise InputError(f"--records {folder} is there, and is no copy of a study's records. Take another folder.")
    aside = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        for part in ("report", "cells"):
            shutil.copytree(study.folder / part, aside / part)
        for record in study.folder.glob("**/run.json"):
            copy = aside / record.relative_to(study.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(record, copy)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except OSError as error:
        raise SaveError.of(folder, error, "Free space, then give the same command again.") from error
