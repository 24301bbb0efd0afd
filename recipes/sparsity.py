"""``monolora sparsity ADAPTER --dataset …``: how sparse the adapter's units are on a data set's prompts.

On the task's own prompts this is the paper's task sparsity, on safety prompts its alignment sparsity (table 2).
"""

from __future__ import annotations

import json
import sys

from peft.tuners.lora.layer import LoraLayer
from rich.table import Table

from monolora.adapters import load_adapted
from monolora.data.custom import load_prompts
from monolora.data.scoring import prompt_sparsity
from monolora.data.tasks import BUILT_IN
from monolora.errors import InputError, exit_status
from monolora.flags import FlagParser
from monolora.inference import Inference
from monolora.remote_code import TRUST_HELP, code_trusted
from monolora.sparsity import Sparsity
from monolora.terminal import Terminal


def main(argv: list[str]) -> int:
    """Measure and print; returns the exit status."""
    parser = FlagParser("monolora sparsity", __doc__)
    parser.add_argument("adapter", help="an adapter folder, MonoLoRA or LoRA")
    parser.add_argument(
        "--dataset", default="demo", help="demo, sst2, dolly, a hub id or a file (default: %(default)s)"
    )
    parser.add_argument("--split", help="of a data set that is no built-in task (default: its only one, or test)")
    parser.add_argument("--model", help="the base model, if not the one that the adapter names")
    parser.add_argument("--max-samples", type=int, default=200, help="prompts measured (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="prompts at a time (default: %(default)s)")
    parser.add_argument("--trust-remote-code", action="store_true", help=TRUST_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    flags = parser.parse(argv)
    if flags.max_samples < 1 or flags.batch_size < 1:
        raise InputError("--max-samples and --batch-size must be at least 1.")

    if flags.dataset in BUILT_IN:
        rows = BUILT_IN[flags.dataset]().test
    else:
        rows = load_prompts(flags.dataset, flags.split, flags.max_samples)
    rows = rows[: flags.max_samples]
    with code_trusted(flags.trust_remote_code):
        model, tokenizer = load_adapted(flags.adapter, flags.model)
    if not any(isinstance(module, LoraLayer) for module in model.modules()):
        raise InputError(f"{flags.adapter} is neither a MonoLoRA nor a LoRA adapter: it has no units to measure.")
    found = prompt_sparsity(Inference(model=model, tokenizer=tokenizer, batch_size=flags.batch_size), rows)
    if flags.json:
        print(json.dumps(found._asdict(), indent=2))
        return 0
    console = Terminal()
    console.print(_table(found, f"{flags.adapter} on {len(rows)} prompts of {flags.dataset}"))
    console.print(f"{found.dead_units} of {found.units} units were zero on all {found.tokens} tokens.")
    return 0


def _table(found: Sparsity, title: str) -> Table:
    table = Table(title=title)
    table.add_column("module")
    table.add_column("zero units", justify="right")
    for name, zeros in found.modules.items():
        table.add_row(name, f"{zeros:.1%}")
    table.add_section()
    table.add_row("all", f"{found.zeros:.1%}")
    return table


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
