"""What ``monolora explain`` leaves: ``features.parquet``, ``explorer.html`` and ``run.json``, all of them or none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monolora.errors import InputError, SaveError, is_disk_trouble
from monolora.eval.explain.page.explorer import explorer_page
from monolora.eval.explain.parquet import write_parquet
from monolora.eval.explain.records import Explained
from monolora.eval.explain.text_sets import TextSet
from monolora.runs import RUN, Kind, OutputFolder, write_json

FEATURES, PAGE = "features.parquet", "explorer.html"
LOGS = "logs"  # what model judges printed; there if any judged


KIND = Kind(
    name="explanation",
    record=RUN,
    keys=("made.adapter_fingerprint", "made.settings", "datasets"),
    files=(re.escape(FEATURES), re.escape(PAGE), rf"{LOGS}/([^/]+\.log)?"),
)


@contextmanager
def whole_explanation(out: OutputFolder) -> Iterator[Path]:
    """A folder to write into, which is at ``out`` in the end or nowhere.

    Raises:
        SaveError: if the disk does not take it.
    """
    try:
        with out.whole() as folder:
            yield folder
    except Exception as error:
        if is_disk_trouble(error) and not isinstance(error, (InputError, SaveError)):
            mend = "Free space or give another folder with --out, and run it again."
            raise SaveError.of(out.path, error, mend) from error
        raise


def write(folder: Path, explained: Explained, text_sets: Mapping[str, TextSet]) -> None:
    """Write the three files."""
    write_parquet(folder / FEATURES, explained)
    # half a surrogate pair, as a cut token may be, has no UTF-8
    (folder / PAGE).write_text(explorer_page(explained), encoding="utf-8", errors="replace", newline="\n")
    write_json(folder / RUN, record(explained, list(text_sets.values())))


def record(explained: Explained, text_sets: Sequence[TextSet]) -> dict[str, Any]:
    """What ``run.json`` holds."""
    ablations = explained.ablations
    return {
        "adapter": explained.adapter,
        "method": explained.method,
        "model": explained.model,
        "units": len(explained.units),
        "datasets": [
            {
                "name": found.name,
                "fingerprint": text_set.fingerprint(),
                "texts": found.texts,
                "tokens": found.tokens,
                "labels": found.labels,
                "unlabelled": found.unlabelled,
                "chance": found.chance,
                "strongest": found.strongest,
                "note": found.note,
            }
            for found, text_set in zip(explained.datasets, text_sets, strict=True)
        ],
        "ablations": {
            "measures": [measure._asdict() for measure in ablations.measures],
            "units": {
                str(explained.units[place]): [change._asdict() for change in changes]
                for place, changes in ablations.changes.items()
            },
            "everything": [change._asdict() for change in ablations.everything],
        },
        "made": dict(explained.made),
    }
