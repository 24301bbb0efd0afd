"""``monolora sparsity ADAPTER --dataset …``: how sparse the adapter's units are on a data set's prompts.

On the task's own prompts this is the paper's task sparsity, on safety prompts its alignment sparsity (table 2).
"""

from __future__ import annotations

import json
import sys

from peft.tuners.lora.layer import LoraLayer
from rich.table import Table

from monolora.adapters import load_adapted
from monolora.cli.flags import FlagParser
from monolora.data.scoring import prompt_sparsity
from monolora.data.task import load_prompts
from monolora.data.tasks import BUILT_IN
from monolora.errors import InputError, exit_status
from monolora.files import code_trusted
from monolora.inference import Inference
from monolora.recipes.settings import Sparsity as Settings
from monolora.sparsity import Sparsity
from monolora.terminal import Terminal, suggest


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora sparsity", __doc__).parse_into(argv, Settings))


def run(settings: Settings) -> int:
    """Measure and print; returns the exit status."""
    if settings.dataset in BUILT_IN:
        rows = BUILT_IN[settings.dataset]().test
    else:
        rows = load_prompts(settings.dataset, settings.split, settings.max_samples)
    rows = rows[: settings.max_samples]
    with code_trusted(settings.trust_remote_code):
        model, tokenizer = load_adapted(settings.adapter, settings.model)
    if not any(isinstance(module, LoraLayer) for module in model.modules()):
        raise InputError(f"{settings.adapter} is neither a MonoLoRA nor a LoRA adapter: it has no units to measure.")
    sparsity = prompt_sparsity(Inference(model=model, tokenizer=tokenizer, batch_size=settings.batch_size), rows)
    if settings.json:
        print(json.dumps(sparsity._asdict(), indent=2))
        return 0
    console = Terminal()
    console.print(_table(sparsity, f"{settings.adapter} on {len(rows)} prompts of {settings.dataset}"))
    console.print(f"{sparsity.dead_units} of {sparsity.units} units were zero on all {sparsity.tokens} tokens.")
    suggest("monolora", "explain", settings.adapter, "--dataset", settings.dataset, "--out", "runs/explained")
    return 0


def _table(sparsity: Sparsity, title: str) -> Table:
    table = Table(title=title)
    table.add_column("module")
    table.add_column("zero units", justify="right")
    for name, zeros in sparsity.modules.items():
        table.add_row(name, f"{zeros:.1%}")
    table.add_section()
    table.add_row("all", f"{sparsity.zeros:.1%}")
    return table


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
