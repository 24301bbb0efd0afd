"""Training rows in the cache of Hugging Face datasets, so that a later run finds them tokenized.

What datasets derives from rows in memory it keeps in memory; what it derives from rows on disk it keeps beside them,
under a hash of the rows, the function and its arguments (the tokenizer among them).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
from accelerate import PartialState

from monolora.runs import new_folder

FOLDER = "monolora-rows"  # in $HF_DATASETS_CACHE


def on_disk(rows: datasets.Dataset) -> datasets.Dataset:
    """The same rows, read from the cache; as they were, where caching is off or the cache cannot be written.

    What is damaged there is made anew.
    """
    if not datasets.is_caching_enabled():
        return rows
    folder = Path(datasets.config.HF_DATASETS_CACHE) / FOLDER / rows._fingerprint  # a hash of what the rows hold
    try:
        with PartialState().main_process_first():
            if not _is_whole(folder, rows):
                shutil.rmtree(folder, ignore_errors=True)
                _save(rows, folder)
            return datasets.load_from_disk(str(folder))
    except OSError:
        return rows


def _is_whole(folder: Path, rows: datasets.Dataset) -> bool:
    """Whether the folder holds these rows, and what was derived from them can be read."""
    try:
        for derived in folder.glob("cache-*.arrow"):
            datasets.Dataset.from_file(str(derived))
        return bool(datasets.load_from_disk(str(folder)).data.table.equals(rows.data.table))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # what damaged files of Arrow and of JSON end in
        return False


def _save(rows: datasets.Dataset, folder: Path) -> None:
    """All or nothing: two runs may come here at once, and either may be killed."""
    try:
        with new_folder(folder) as aside:
            rows.save_to_disk(aside)
    except OSError:
        if not folder.exists():  # else another run was faster
            raise
