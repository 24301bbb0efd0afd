"""Write Table 1: accuracy of linear probes under label noise, with intervals, and the paper's numbers.

    monolora vision table1 --out OUT

Reads the records of the other steps in OUT. Writes OUT/table1.md to read, table1.csv to compute with and table1.tex for
a paper.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monolora.errors import InputError, exit_status
from monolora.files import saving, write_text
from monolora.recipes.vision.paper_comparison import Cell, LossTable, Row, compare, tables
from monolora.recipes.vision.results import DENSE_NOTE, SHORT, Records, read_records
from monolora.recipes.vision.settings import Settings, parse
from monolora.reporting.tables import csv_text, escaped, piped
from monolora.terminal import say

FIELDS = ("representation", "loss", "noise_rate", "mean", "low", "high", "n", "paper")
NOTHING = "–"


def as_markdown(loss_tables: Sequence[LossTable], records: Records) -> str:
    """The tables, the paper's numbers below ours, and the statistics of representations and autoencoders."""
    parts = ["# Table 1"]
    for table in loss_tables:
        head = ["features", *_rates(table)]
        rows = [line for row in table.rows for line in _markdown_rows(row)]
        parts += [f"## {table.title}", piped(head, rows), table.caption]
    representations = _representation_rows(records)
    if representations:
        head = ["representation", "seed", "semantic consistency", "live dimensions", "zeros"]
        parts += ["## Representations, on validation images", piped(head, representations), DENSE_NOTE]
    autoencoders = [
        [str(record.seed), f"{record.explained:.1%}", f"{record.dead:.1%}"] for record in records.autoencoder_records
    ]
    if autoencoders:
        parts += ["## Autoencoders", piped(["seed", "variance explained", "dead latents"], autoencoders)]
    return "\n\n".join(parts) + "\n"


def _representation_rows(records: Records) -> list[list[str]]:
    return [
        [
            SHORT[record.representation],
            str(record.seed),
            NOTHING if record.consistency is None else f"{record.consistency:.3f}",
            f"{record.live} of {record.dimensions}",
            f"{record.zeros:.1%}",
        ]
        for record in records.consistency_records
    ]


def as_csv(loss_tables: Sequence[LossTable]) -> str:
    """A row for each number, unrounded, in % or percentage points (``sae-simclr``: SAE less CL)."""
    rows: list[Sequence[Any]] = [FIELDS]
    for table in loss_tables:
        for row in table.rows:
            for cell in row.cells:
                estimate = cell.estimate
                numbers = (None,) * 4 if estimate is None else (estimate.mean, estimate.low, estimate.high, estimate.n)
                rows.append([row.key, table.loss, cell.rate, *numbers, cell.paper])
    return csv_text(rows)


def as_latex(loss_tables: Sequence[LossTable]) -> str:
    """booktabs tables, the paper's numbers below ours."""
    return "\n".join([r"% Needs \usepackage{booktabs}.", *(_latex_table(table) for table in loss_tables)])


def _latex_table(table: LossTable) -> str:
    columns = _rates(table)
    lines = [
        r"\begin{table}",
        r"\centering\small\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{escaped(table.title)}. {escaped(table.caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["Features", *map(escaped, columns)]) + r" \\",
        r"\midrule",
        *(line for row in table.rows for line in _latex_rows(row)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_rows(row: Row) -> list[str]:
    """Means, half of their intervals below them in small type, and the paper's numbers."""
    sign = _sign(row)
    lines = [[row.title, *(_number(cell.estimate and cell.estimate.mean, sign) for cell in row.cells)]]
    halves = [cell.estimate and cell.estimate.half_width for cell in row.cells]
    if any(half is not None for half in halves):
        lines.append(["", *("" if half is None else f"±{half:.1f}" for half in halves)])
    latex = [" & ".join(map(escaped, line)) for line in [*lines, *_paper_row(row)]]
    if len(lines) > 1:
        latex[1] = " & ".join(["{}", *(rf"{{\scriptsize {escaped(text)}}}" for text in lines[1][1:])])
    return [rf"{line} \\" for line in latex]


def _rates(table: LossTable) -> list[str]:
    return [f"{100 * cell.rate:g}" for cell in table.rows[0].cells]


def _markdown_rows(row: Row) -> list[list[str]]:
    """Our numbers, and a row of the paper's where it has any."""
    return [[row.title, *(_estimate(cell, _sign(row)) for cell in row.cells)], *_paper_row(row)]


def _paper_row(row: Row) -> list[list[str]]:
    if all(cell.paper is None for cell in row.cells):
        return []
    return [["paper", *(_number(cell.paper, _sign(row)) for cell in row.cells)]]


def _sign(row: Row) -> str:
    return "+" if row.is_difference else ""


def _estimate(cell: Cell, sign: str) -> str:
    if cell.estimate is None:
        return NOTHING
    half = cell.estimate.half_width
    return _number(cell.estimate.mean, sign) + ("" if half is None else f" ± {half:.1f}")


def _number(value: float | None, sign: str) -> str:
    if value is None:
        return NOTHING
    text = f"{value:{sign}.1f}"
    return "0.0" if text in ("-0.0", "+0.0") else text.replace("-", "−")


def run(settings: Settings) -> None:
    """Write the table and print it.

    Raises:
        InputError: if no representation has been probed.
        SaveError: if the disk does not take it.
    """
    out = Path(settings.common.out)
    records = read_records(out)
    if not records.probe_records:
        raise InputError(f"{out} has no probes. Run them first: monolora vision probe --out {out}.")
    loss_tables = tables(records, compare(records, settings.data))
    texts = {"md": as_markdown(loss_tables, records), "csv": as_csv(loss_tables), "tex": as_latex(loss_tables)}
    with saving(out):
        for suffix, text in texts.items():
            write_text(out / f"table1.{suffix}", text)
    say(texts["md"])
    say(f"table1: {', '.join(str(out / f'table1.{suffix}') for suffix in texts)}")


def main(argv: list[str]) -> int:
    """Run the program."""
    run(parse(argv, "table1", __doc__))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
