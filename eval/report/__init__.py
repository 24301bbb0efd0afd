"""The report for readers: the table in the terminal, as CSV and LaTeX, and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monolora.eval.report.page import page
from monolora.eval.report.tables import as_csv, as_latex, show
from monolora.files import saving, write_json, write_text

__all__ = ["CSV", "LATEX", "PAGE", "RESULTS", "show", "write"]

RESULTS, CSV, LATEX, PAGE = "results.json", "table.csv", "table.tex", "report.html"


def write(folder: Path, results: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> None:
    """Write ``results.json``, ``table.csv``, ``table.tex`` and ``report.html``, each whole or not at all.

    Args:
        folder: of the run; it exists.
        results: of :mod:`monolora.eval.measures`.
        entries: prompts with the models' answers and the judgements of them, for the page's list.

    Raises:
        SaveError: if the disk does not take them.
    """
    texts = {CSV: as_csv(results), LATEX: as_latex(results), PAGE: page(results, entries)}
    with saving(folder, f"The records of the run are whole. Free space, then: monolora eval report --out {folder}"):
        write_json(folder / RESULTS, results)
        for name, text in texts.items():
            write_text(folder / name, text)
