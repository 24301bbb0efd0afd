"""The ``monolora`` command: one word picks a program, the rest are its flags."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import cast

from monolora.errors import exit_status, unknown

# Programs are imported when asked for: each brings its own libraries.
COMMANDS = {
    "sft": ("monolora.recipes.sft", "finetune with MonoLoRA, LoRA or all weights, and measure it"),
    "demo": ("monolora.recipes.demo", "train LoRA and MonoLoRA on a small task and compare them"),
    "eval": ("monolora.eval.__main__", "what finetuning did to alignment: responses, judges, one table"),
    "judge": ("monolora.recipes.judge", "train a small safety judge on BeaverTails"),
    "sparsity": ("monolora.recipes.sparsity", "how sparse an adapter's units are on the prompts of a data set"),
    "explain": ("monolora.eval.explain.__main__", "what each unit fires on, says and does, in a page to explore"),
    "prune": ("monolora.recipes.prune", "an adapter without some of its units, exactly"),
    "merge": ("monolora.recipes.merge", "an adapter and its base in one checkpoint, linearly or exactly, verified"),
    "verify": ("monolora.recipes.verify", "how much of an adapter's effect a merged checkpoint keeps"),
    "serve-check": ("monolora.recipes.serve_check", "whether vLLM answers through an adapter as transformers does"),
    "study": ("monolora.recipes.study.alignment", "the paper's table 2 with error bars: train, evaluate, conclude"),
    "vision": ("monolora.recipes.vision.__main__", "the paper's vision experiments, from pretraining to its figures"),
    "superposition": ("monolora.recipes.superposition.__main__", "the paper's toy model and theory, run and checked"),
    "doctor": ("monolora.doctor", "versions, devices and data, and what is missing"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one program.

    Returns:
        The exit status: 0 done, 1 failure, 2 bad input.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_status(lambda: _run(words))


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print("usage: monolora COMMAND [flags]   (monolora COMMAND --help for its flags)\n")
        print("\n".join(f"  {name:14}{what}" for name, (_, what) in COMMANDS.items()))
        return 0 if words else 2
    if words[0] not in COMMANDS:
        raise unknown("command", words[0], COMMANDS)
    program = cast(Callable[[list[str]], int], importlib.import_module(COMMANDS[words[0]][0]).main)
    return program(words[1:])


if __name__ == "__main__":
    sys.exit(main())
