"""Table 1: accuracy of linear probes under label noise, with intervals, beside the paper's.

    monolora vision table1 --out OUT

Reads what `probe` has left in OUT; writes OUT/table1.md, .csv and .tex.
"""

from __future__ import annotations

import sys
from pathlib import Path

from monolora.errors import InputError, SaveError, exit_status
from monolora.recipes.vision.command_line import parse
from monolora.recipes.vision.results.comparable import compared
from monolora.recipes.vision.results.gathered import gather
from monolora.recipes.vision.results.table_rows import tables
from monolora.recipes.vision.results.table_text import as_csv, as_latex, as_markdown
from monolora.recipes.vision.settings import Settings
from monolora.runs import write_aside
from monolora.terminal import say


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
