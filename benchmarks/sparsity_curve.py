"""The task's score against the share of zeros, over weights of the sparsity loss.

    python benchmarks/sparsity_curve.py --weights 0 0.001 0.01 0.1 --out runs/sparsity-curve

One run of ``monolora sft`` a weight, with the settings of ``recipes/configs/sst2-smollm2.yaml``; weight 0 is the peer.
Words that this program does not know go to ``monolora sft``. Start it again to go on: finished runs are kept, and an
interrupted one is resumed from its last checkpoint. The table is in ``OUT/curve.json`` too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rounds import machine, save

from monolora import run_record

CONFIG = "sst2-smollm2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.001, 0.01, 0.1])
    parser.add_argument("--out", type=Path, required=True, help="the folder of the runs")
    flags, words = parser.parse_known_args()
    points = [_point(weight, _run(flags.out / f"weight-{weight:g}", weight, words)) for weight in flags.weights]
    save(
        {"words": words, "machine": machine("peft", "trl", "transformers"), "points": points}, flags.out / "curve.json"
    )
    table = Table(title="SST-2, SmolLM2-135M-Instruct", title_justify="left")
    for head in ("weight", "accuracy", "zero units", "dead units", "units"):
        table.add_column(head, justify="right")
    for point in points:
        table.add_row(
            f"{point['weight']:g}",
            f"{point['accuracy']:.1%}",
            f"{point['zeros']:.1%}",
            f"{point['dead_units']:,}",
            f"{point['units']:,}",
        )
    Console().print(table)


def _run(folder: Path, weight: float, words: Sequence[str]) -> dict[str, Any]:
    """The record of the run of a weight, which is made, resumed, or read."""
    record = run_record.read(folder)
    if record is None or record["status"] != "done":
        resumed = ["--resume-from-checkpoint"] if any(folder.glob("checkpoint-*")) else []
        flags = ["--config", CONFIG, "--sparsity-weight", str(weight), "--output-dir", str(folder), *words, *resumed]
        subprocess.run([sys.executable, "-m", "monolora.recipes.sft", *flags], check=True)
    record = json.loads((folder / run_record.FILE).read_text(encoding="utf-8"))
    if record["config"]["sparsity_weight"] != weight:
        raise SystemExit(f"{folder} is a run of another weight. Take another --out.")
    return record


def _point(weight: float, record: dict[str, Any]) -> dict[str, float]:
    results = record["results"]
    measured = {name: results["sparsity"][name] for name in ("zeros", "dead_units", "units")}
    return {"weight": weight, "accuracy": results["after"]["accuracy"], "n": results["after"]["n"], **measured}


if __name__ == "__main__":
    main()
