"""The records of a study without its weights and texts: what can be published, with all links of the report whole."""

from __future__ import annotations

import shutil

from monolora.errors import SaveError
from monolora.recipes.studies.report import DIFFERENCES, REPORT, TABLE, VERDICTS
from monolora.recipes.studies.settings import Study
from monolora.runs import Kind, OutputFolder

# Its record is the verdicts; report.md beside it is for people.
KIND = Kind(
    name="copy of a study's records",
    record=f"report/{VERDICTS}",
    keys=(),
    files=(
        rf"report/({REPORT}|{TABLE}|{DIFFERENCES}|[\w.-]+\.(png|svg))",
        r"cells/[\w.-]+\.json",
        r"([^/]+/)+run\.json",
    ),
)


def check_records(study: Study, folder: OutputFolder) -> None:
    """Check that the copy can be written, before the study is run.

    Raises:
        InputError: if something else is there, or the study itself.
    """
    folder.check(overwrite=True)
    folder.check_apart([study.folder])


def keep_records(study: Study, folder: OutputFolder) -> None:
    """Copy the report, every ``run.json``, and what was run for how long; an earlier copy is replaced.

    Args:
        study: one that is done.
        folder: where to, after :func:`check_records`; it gets the study's own layout.

    Raises:
        SaveError: if the disk does not take it.
    """
    try:
        with folder.whole() as aside:
            for part in ("report", "cells"):
                shutil.copytree(study.folder / part, aside / part)
            for record in study.folder.glob("**/run.json"):
                copy = aside / record.relative_to(study.folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(record, copy)
    except OSError as error:
        raise SaveError.of(folder.path, error, "Free space, then give the same command again.") from error
