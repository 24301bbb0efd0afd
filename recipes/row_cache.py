"""Training rows in the cache of Hugging Face datasets, so that a later run finds them tokenized.

What datasets derives from rows in memory it keeps in memory; what it derives from rows on disk it keeps beside them,
under a hash of the rows, the function and its arguments (the tokenizer among them).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import datasets
from accelerate import PartialState

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
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = tempfile.mkdtemp(dir=folder.parent, prefix=".saving-")
    try:
        rows.save_to_disk(aside)
        os.rename(aside, folder)
    except OSError:
        if not folder.exists():  # else another run was faster
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
