"""Pictures of what a run prints, as SVG, from its record: the command, the table of scores, the keeping report.

python docs/terminal_pictures.py runs/sst2 docs/figures/terminal-sft.svg "monolora sft --dataset sst2 …"
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.terminal_theme import MONOKAI

from monolora import run_record
from monolora.errors import InputError
from monolora.keep.report import KeepingReport, keeping_table
from monolora.recipes.training.model_card import result_table, rows_line
from monolora.terminal import Terminal

WIDTH = 104  # characters


def draw(run: Path, command: str) -> str:
    """The SVG.

    Raises:
        InputError: if the folder holds no finished run.
    """
    record = run_record.read(run)
    if record is None or record["status"] != "done":
        raise InputError(f"{run} holds no finished run. Give the output folder of monolora sft.")
    terminal = Terminal(file=io.StringIO(), record=True, width=WIDTH)
    terminal.print(f"$ {command}", style="bold", soft_wrap=True)
    terminal.print(rows_line(record["rows"]))
    terminal.print(result_table([record]))
    if keeping := record["results"]["keeping"]:
        terminal.print(keeping_table({name: KeepingReport.of(values) for name, values in keeping["sets"].items()}))
    return terminal.export_svg(title="monolora", theme=MONOKAI)


if __name__ == "__main__":
    folder, picture, typed = sys.argv[1:]
    Path(picture).write_text(draw(Path(folder), typed), encoding="utf-8")
