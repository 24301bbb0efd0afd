"""``monolora keep-report ADAPTER --prompts SET …``: how far an adapter takes its base from itself on given prompts.

Any adapter that PEFT loads, MonoLoRA or not. Base and adapted model answer the same batches greedily; the report has
the share of tokens with all units silent, of answers that are the base's token for token, the KL along the base's
answers, and refusals before and after.
"""

from __future__ import annotations

import json
import sys

from peft.tuners.lora.layer import LoraLayer

from monolora.adapters import load_adapted
from monolora.cli.flags import FlagParser
from monolora.data import prompt_sets
from monolora.data.chat_template import prompt_ids
from monolora.errors import exit_status
from monolora.files import code_trusted
from monolora.keep.anchors import Anchor, read_prompts
from monolora.keep.report import KeepingReport, Pair, keeping_table, measure
from monolora.recipes.settings import KeepReport as Settings
from monolora.terminal import Terminal, suggest


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora keep-report", __doc__).parse_into(argv, Settings))


def run(settings: Settings) -> int:
    """Measure and print; returns the exit status."""
    sets = {
        prompt_sets.set_name(name): read_prompts([name], settings.max_samples, from_evaluation=True).examples
        for name in settings.prompts
    }
    with code_trusted(settings.trust_remote_code):
        model, tokenizer = load_adapted(settings.adapter, settings.model, dtype=settings.dtype)
    reports: dict[str, KeepingReport] = {}
    for name, examples in sets.items():
        anchors = [Anchor(prompt_ids(example, tokenizer), []) for example in examples]
        pair = Pair(model, model, model.disable_adapter)
        reports[name] = measure(pair, tokenizer, anchors, settings.batch_size, settings.max_new_tokens)
    if settings.json:
        print(json.dumps({name: report.as_json() for name, report in reports.items()}, indent=2))
        return 0
    console = Terminal()
    console.print(keeping_table(reports))
    if not any(isinstance(module, LoraLayer) for module in model.modules()):
        console.print(f"{settings.adapter} is neither MonoLoRA nor LoRA: it has no units that could be silent.")
    words = ["--model", str(model.name_or_path), "--adapter", f"tuned={settings.adapter}"]
    suggest("monolora", "eval", "run", *words, "--judges", "refusal", "--out", "runs/eval")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
