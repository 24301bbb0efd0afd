"""LoRA and MonoLoRA on the demo task, one table: ``make demo`` or ``monolora demo``.

Both train SmolLM2-135M on 256 sentences that the project writes itself, with the same settings and seed, and are
scored on 200 sentences of other templates. Nothing is downloaded.
"""

from __future__ import annotations

import sys
from pathlib import Path

from monolora.cli.flags import FlagParser
from monolora.data.tasks import BUILT_IN
from monolora.errors import exit_status
from monolora.recipes import sft
from monolora.recipes.settings import Demo
from monolora.recipes.training.arguments import parse
from monolora.recipes.training.model_card import result_table
from monolora.terminal import Terminal, say, suggest

SETTINGS = ["--dataset", "demo", "--per-device-train-batch-size", "8", "--overwrite"]


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora demo", __doc__).parse_into(argv, Demo))


def run(settings: Demo) -> int:
    """Run the two; returns the exit status."""
    console = Terminal()
    records = []
    for adapter in ("lora", "monolora"):
        console.rule(adapter)
        folder = str(Path(settings.output_dir) / adapter)
        words = [*SETTINGS, "--adapter", adapter, "--seed", str(settings.seed), "--output-dir", folder]
        records.append(sft.run(parse(words)))
    console.print(result_table(records))
    for metric in BUILT_IN["demo"]().scorer.metrics:
        console.print(f"{metric.title}: {metric.description}.", soft_wrap=True)
    console.print("sparsity: zeros among the adapter's hidden units, on the held-out prompts. LoRA's are never zero.")
    say(f"Each run's model, card, plot and run.json: {settings.output_dir}/lora, {settings.output_dir}/monolora")
    suggest("monolora", "sft", "--dataset", "sst2", "--max-train-samples", "1600", "--keep", "silence")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
