"""Training rows in the cache of Hugging Face datasets, so that a later run finds them tokenized.

What datasets derives from rows in memory it keeps in memory; what it derives from rows on disk it keeps beside them,
under a hash of the rows, the function and its arguments (the tokenizer among them).
"""

from __future__ import annotations

from pathlib import Path

import datasets
from accelerate import PartialState

from monolora.runs import new_folder

FOLDER = "monolora-rows"  # in $HF_DATASETS_CACHE


def on_disk(rows: datasets.Dataset) -> datasets.Dataset:
    """The same rows, read from the cache; as they were, where caching is off or the cache cannot be written."""
    if not datasets.is_caching_enabled():
        return rows
    folder = Path(datasets.config.HF_DATASETS_CACHE) / FOLDER / rows._fingerprint  # a hash of what the rows hold
    try:
        with PartialState().main_process_first():
            if not folder.exists():
                _save(rows, folder)
            return datasets.load_from_disk(str(folder))
    except OSError:
        return rows


def _save(rows: datasets.Dataset, folder: Path) -> None:
    """All or nothing: two runs may come here at once, and either may be killed."""
    try:
        with new_folder(folder) as aside:
            rows.save_to_disk(aside)
    except OSError:
        if not folder.exists():  # else another run was faster
            raise
