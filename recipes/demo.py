"""LoRA and MonoLoRA on the demo task, one table: ``make demo`` or ``monolora demo``.

Both train SmolLM2-135M on 256 sentences that the project writes itself, with the same settings and seed, and are
scored on 200 sentences of other templates. Nothing is downloaded.
"""

from __future__ import annotations

import sys
from pathlib import Path

from monolora.errors import exit_status
from monolora.flags import FlagParser
from monolora.recipes.sft import run
from monolora.recipes.training.arguments import parse
from monolora.recipes.training.report import result_table
from monolora.terminal import Terminal, say

SETTINGS = ["--dataset", "demo", "--per-device-train-batch-size", "8", "--overwrite"]


def main(argv: list[str]) -> int:
    """Run the two; returns the exit status."""
    parser = FlagParser("monolora demo", __doc__)
    parser.add_argument(
        "--output-dir", default="runs/demo", help="parent of the two runs' folders (default: %(default)s)"
    )
    parser.add_argument("--seed", default="42", help="of both runs (default: %(default)s)")
    flags = parser.parse(argv)
    console = Terminal()
    records = []
    for adapter in ("lora", "monolora"):
        console.rule(adapter)
        folder = str(Path(flags.output_dir) / adapter)
        records.append(run(parse([*SETTINGS, "--adapter", adapter, "--seed", flags.seed, "--output-dir", folder])))
    console.print(result_table(records))
    say(f"Each run's model, card, plot and run.json: {flags.output_dir}/lora, {flags.output_dir}/monolora")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
