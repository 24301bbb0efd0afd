"""Table 1 as files: Markdown to read, CSV to compute with, LaTeX for a paper."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monolora.errors import InputError, SaveError, exit_status
from monolora.recipes.vision.command_line import parse
from monolora.recipes.vision.paper_comparison import Block, Cell, Row, compared, tables
from monolora.recipes.vision.results import DENSE, SHORT, Gathered, gather
from monolora.recipes.vision.settings import Settings
from monolora.reporting.tables import csv_text, escaped, piped
from monolora.runs import write_aside
from monolora.terminal import say

FIELDS = ("representation", "loss", "noise_rate", "mean", "low", "high", "n", "paper")
NOTHING = "–"


def as_markdown(blocks: Sequence[Block], runs: Gathered) -> str:
    """The tables, the paper's numbers below ours, and what is known of the representations."""
    parts = ["# Table 1"]
    for block in blocks:
        head = ["features", *_rates(block)]
        rows = [line for row in block.rows for line in _lines(row)]
        parts += [f"## {block.title}", piped(head, rows), block.caption]
    known = _representations(runs)
    if known:
        head = ["representation", "seed", "semantic consistency", "live dimensions", "zeros"]
        parts += ["## Representations, on validation images", piped(head, known), DENSE]
    autoencoders = [[str(each.seed), f"{each.explained:.1%}", f"{each.dead:.1%}"] for each in runs.autoencoders]
    if autoencoders:
        parts += ["## Autoencoders", piped(["seed", "variance explained", "dead latents"], autoencoders)]
    return "\n\n".join(parts) + "\n"


def _representations(runs: Gathered) -> list[list[str]]:
    return [
        [
            SHORT[each.representation],
            str(each.seed),
            NOTHING if each.consistency is None else f"{each.consistency:.3f}",
            f"{each.live} of {each.dimensions}",
            f"{each.zeros:.1%}",
        ]
        for each in runs.consistent
    ]


def as_csv(blocks: Sequence[Block]) -> str:
    """One row a number, in full, in % or points (``sae-simclr``: SAE less CL)."""
    rows: list[Sequence[Any]] = [FIELDS]
    for block in blocks:
        for row in block.rows:
            for cell in row.cells:
                found = cell.estimate
                numbers = (None,) * 4 if found is None else (found.mean, found.low, found.high, found.n)
                rows.append([row.key, block.loss, cell.rate, *numbers, cell.paper])
    return csv_text(rows)


def as_latex(blocks: Sequence[Block]) -> str:
    """booktabs tables, the paper's numbers below ours."""
    return "\n".join([r"% Needs \usepackage{booktabs}.", *(_latex_table(block) for block in blocks)])


def _latex_table(block: Block) -> str:
    columns = _rates(block)
    lines = [
        r"\begin{table}",
        r"\centering\small\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{escaped(block.title)}. {escaped(block.caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["Features", *map(escaped, columns)]) + r" \\",
        r"\midrule",
        *(line for row in block.rows for line in _latex_rows(row)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_rows(row: Row) -> list[str]:
    """Means, half of the intervals below them in small type, and the paper's."""
    sign = _sign(row)
    lines = [[row.title, *(_number(cell.estimate and cell.estimate.mean, sign) for cell in row.cells)]]
    halves = [cell.estimate and cell.estimate.half_width for cell in row.cells]
    if any(half is not None for half in halves):
        lines.append(["", *("" if half is None else f"±{half:.1f}" for half in halves)])
    found = [" & ".join(map(escaped, line)) for line in [*lines, *_paper(row)]]
    if len(lines) > 1:
        found[1] = " & ".join(["{}", *(rf"{{\scriptsize {escaped(text)}}}" for text in lines[1][1:])])
    return [rf"{line} \\" for line in found]


def _rates(block: Block) -> list[str]:
    return [f"{100 * cell.rate:g}" for cell in block.rows[0].cells]


def _lines(row: Row) -> list[list[str]]:
    """A row of ours, and one of the paper's where it has any."""
    return [[row.title, *(_measured(cell, _sign(row)) for cell in row.cells)], *_paper(row)]


def _paper(row: Row) -> list[list[str]]:
    if all(cell.paper is None for cell in row.cells):
        return []
    return [["paper", *(_number(cell.paper, _sign(row)) for cell in row.cells)]]


def _sign(row: Row) -> str:
    return "+" if row.is_difference else ""


def _measured(cell: Cell, sign: str) -> str:
    if cell.estimate is None:
        return NOTHING
    half = cell.estimate.half_width
    return _number(cell.estimate.mean, sign) + ("" if half is None else f" ± {half:.1f}")


def _number(value: float | None, sign: str) -> str:
    if value is None:
        return NOTHING
    shown = f"{value:{sign}.1f}"
    return "0.0" if shown in ("-0.0", "+0.0") else shown.replace("-", "−")


def run(settings: Settings) -> None:
    """Write the table and show it.

    Raises:
        InputError: if no representation has been probed.
        SaveError: if the disk does not take it.
    """
    out = Path(settings.common.out)
    runs = gather(out)
    if not runs.probed:
        raise InputError(f"{out} has no probes. Run them first: monolora vision probe --out {out}.")
    found = tables(runs, compared(runs, settings.data))
    texts = {"md": as_markdown(found, runs), "csv": as_csv(found), "tex": as_latex(found)}
    try:
        for suffix, text in texts.items():
            write_aside(out / f"table1.{suffix}", lambda path, text=text: path.write_text(text))  # type: ignore[misc]
    except OSError as error:
        raise SaveError.of(out, error, "Free space, then give the same command again.") from error
    say(texts["md"])
    say(f"table1: {', '.join(str(out / f'table1.{suffix}') for suffix in texts)}")


def main(argv: list[str]) -> int:
    """Run the program."""
    run(parse(argv, "table1", __doc__))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
