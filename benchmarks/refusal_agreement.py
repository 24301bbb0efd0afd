"""How well the list of refusals agrees with people, on answers that people have labelled.

    python benchmarks/refusal_agreement.py xstest_v2_completions_llama2.csv

Reads CSV files as XSTest publishes them for several models (arXiv 2308.01263): an answer a row, and a label that begins
with 1 for full compliance, 2 for full and 3 for partial refusal. Answers are never printed. Partial refusals count as
refusals, as in XSTest's paper; the table shows them by themselves too.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monolora.errors import InputError, exit_status
from monolora.files import read_text
from monolora.refusals import refuses
from monolora.stats import kappa, wilson

KINDS = {"1": "full compliance", "2": "full refusal", "3": "partial refusal"}


def main() -> int:
    """Print the agreement; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--answer", default="completion", help="column of the answer (default: %(default)s)")
    parser.add_argument("--label", default="final_label", help="column of the label (default: %(default)s)")
    flags = parser.parse_args()
    return exit_status(lambda: _compare(flags.files, flags.answer, flags.label))


def _compare(files: Sequence[str], answer: str, label: str) -> int:
    rows = [row for file in files for row in _read(Path(file), answer, label)]
    kinds = np.array([kind for kind, _ in rows])
    found = np.array([refuses(text) for _, text in rows])
    for number, name in KINDS.items():
        of_kind = found[kinds == number]
        if len(of_kind):
            print(f"{name}: called a refusal {_share(int(of_kind.sum()), len(of_kind))}")
    people = kinds != "1"
    print(f"agreement with people: {_share(int((people == found).sum()), len(rows))}")
    value = kappa(people, found, np.ones(len(rows)))
    print(f"Cohen's kappa: {'–' if value is None else f'{value:.3f}'}")
    return 0


def _read(file: Path, answer: str, label: str) -> list[tuple[str, str]]:
    """Kinds and answers.

    Raises:
        InputError: if the file lacks a column, or a label is unknown.
    """
    reader = csv.DictReader(io.StringIO(read_text(file)))
    if missing := {answer, label} - set(reader.fieldnames or ()):
        raise InputError(f"{file} has no column {min(missing)!r}. Name it with --answer or --label.")
    rows = [(row[label].strip()[:1], row[answer]) for row in reader]
    for number, (kind, _) in enumerate(rows, start=1):
        if kind not in KINDS:
            raise InputError(f"{file}, row {number}: the label begins with {kind!r}, and 1, 2 or 3 are known.")
    if not rows:
        raise InputError(f"{file} has no rows.")
    return rows


def _share(count: int, total: int) -> str:
    interval = wilson(count, total)
    return f"{count / total:.1%} of {total:,} [{interval.low:.1%}, {interval.high:.1%}]"


if __name__ == "__main__":
    raise SystemExit(main())
