"""The ``monolora`` command: one word picks a program, the rest are its flags.

Nothing here, and nothing that parses flags, imports torch: help and misspelt flags are answered at once.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from monolora.cli.flags import FlagParser, Flags
from monolora.errors import InputError, exit_status, unknown


class Command(NamedTuple):
    """A word after ``monolora``.

    Attributes:
        module: of the program.
        summary: what it does, in a line.
        settings: the class of its flags, as MODULE:CLASS. The program's ``run`` takes them. Empty for a program that
            parses its own words.
        main: the function of such a program, which takes the words.
    """

    module: str
    summary: str
    settings: str = ""
    main: str = "main"


_RECIPES = "monolora.recipes"
_SETTINGS = "monolora.recipes.settings"
_OF_CHECKPOINTS = "monolora.recipes.checkpoint_settings"

GROUPS = {
    "Finetune": {
        "sft": Command(f"{_RECIPES}.training.command", "finetune with MonoLoRA, LoRA or all weights, and measure it"),
        "dpo": Command(
            f"{_RECIPES}.training.command",
            "finetune on preferences (DPO, KTO), measured the same way",
            main="preferences",
        ),
        "data": Command(
            f"{_RECIPES}.data_report",
            "what is in a data set, and what sft would train on: formats, lengths, duplicates",
            f"{_SETTINGS}:DataReport",
        ),
        "plan": Command(
            f"{_RECIPES}.plan",
            "what a run takes of each GPU's memory, which layout fits, and how to launch it",
            f"{_SETTINGS}:Plan",
        ),
        "demo": Command(f"{_RECIPES}.demo", "LoRA and MonoLoRA on a small task, in one table", f"{_SETTINGS}:Demo"),
        "align": Command(
            f"{_RECIPES}.align",
            "teach a chat model to refuse what it should, and to answer all else as before",
            f"{_SETTINGS}:Align",
        ),
    },
    "Measure": {
        "eval": Command("monolora.eval.__main__", "what finetuning did to alignment: responses, judges, one table"),
        "keep-report": Command(
            f"{_RECIPES}.keep_report",
            "how far an adapter takes its base from itself on given prompts",
            f"{_SETTINGS}:KeepReport",
        ),
        "judge": Command(
            f"{_RECIPES}.judge.program", "train a small safety judge on BeaverTails", f"{_SETTINGS}:Judge"
        ),
        "sparsity": Command(
            f"{_RECIPES}.sparsity",
            "how sparse an adapter's units are on the prompts of a data set",
            f"{_SETTINGS}:Sparsity",
        ),
    },
    "Read and edit units": {
        "explain": Command(
            "monolora.eval.explain.program",
            "what each unit fires on, says and does, in a page to explore",
            "monolora.eval.explain.settings:Call",
        ),
        "prune": Command(f"{_RECIPES}.prune", "an adapter without some of its units, exactly", f"{_SETTINGS}:Prune"),
        "repair": Command(
            f"{_RECIPES}.repair",
            "an adapter without the units that take most from its base and give least to its task",
            f"{_SETTINGS}:Repair",
        ),
    },
    "Deploy": {
        "chat": Command(
            f"{_RECIPES}.chat", "talk to an adapter or a model, and to its base, unit by unit", f"{_SETTINGS}:Chat"
        ),
        "merge": Command(
            f"{_RECIPES}.merge",
            "an adapter and its base in one checkpoint, linearly or exactly, verified",
            f"{_OF_CHECKPOINTS}:Merge",
        ),
        "export": Command(
            f"{_RECIPES}.export",
            "a checkpoint as GGUF files with an Ollama Modelfile, compared with its source",
            f"{_OF_CHECKPOINTS}:Export",
        ),
        "verify": Command(
            f"{_RECIPES}.verify",
            "how much of an adapter's effect a merged checkpoint keeps",
            f"{_OF_CHECKPOINTS}:Verify",
        ),
        "serve-check": Command(
            f"{_RECIPES}.serve_check",
            "whether vLLM answers through an adapter as transformers does",
            f"{_SETTINGS}:ServeCheck",
        ),
    },
    "Experiments": {
        "study": Command(
            f"{_RECIPES}.study.alignment",
            "adapters compared with error bars: train, evaluate, conclude",
            f"{_RECIPES}.study.settings:Call",
        ),
        "vision": Command(f"{_RECIPES}.vision.__main__", "the paper's vision experiments, from pretraining to figures"),
        "superposition": Command(
            f"{_RECIPES}.superposition.__main__", "the paper's toy model and theory, run and checked"
        ),
    },
    "Set up": {
        "doctor": Command("monolora.doctor", "versions, devices and data, what is missing, and the fix"),
        "configs": Command("monolora.cli.packaged_configs", "configurations that come with the project, by name"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def main(argv: list[str] | None = None) -> int:
    """Run one program.

    Returns:
        The exit status: 0 done, 1 failure, 2 bad input.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_status(lambda: _run(words))


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    name, *rest = words
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    command = COMMANDS[name]
    if not command.settings:
        status: int = getattr(importlib.import_module(command.module), command.main)(rest)
        return status
    module, _, kind = command.settings.partition(":")
    return run_program(command.module, rest, f"monolora {name}", getattr(importlib.import_module(module), kind))


def _overview() -> str:
    """All commands, by what they are for, and where to begin."""
    lines = ["usage: monolora COMMAND [flags]   (monolora COMMAND --help for its flags)"]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:15}{command.summary}" for name, command in commands.items())]
    return "\n".join([*lines, "", "New here? monolora demo, then monolora sft --keep silence."])


def run_program(module: str, words: Sequence[str], prog: str, kind: type[Flags]) -> int:
    """Run a program that is imported once its flags are known to be right: each brings its own libraries.

    Args:
        module: of the program, whose ``run`` takes the settings and returns the exit status.
        words: its flags.
        prog: how it is called.
        kind: of the settings.

    Raises:
        InputError: for wrong flags, and as the program does.
    """
    settings = FlagParser(prog, docstring_of(module)).parse_into(words, kind)
    status: int = importlib.import_module(module).run(settings)
    return status


def docstring_of(module: str) -> str | None:
    """The docstring of a module, which is not imported for it; the packages above it are."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")), clean=False)


def run_step(
    argv: list[str],
    program: str,
    steps: Iterable[str],
    description: str | None,
    run: Callable[[str, list[str]], int],
    what: str = "step",
) -> int:
    """Run the step of a program that the first word names, or print the help.

    Args:
        argv: the words of the command line.
        program: as in ``monolora vision``.
        steps: their names.
        description: for ``--help``.
        run: runs a step, given its name and the words after it.
        what: what a step is called.

    Returns:
        The exit status: the step's own; 0 for ``--help``, 2 without any word.

    Raises:
        InputError: for an unknown step, or flags before the step.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{description}\nFlags: {program} {what.upper()} --help")
        return 0 if argv else 2
    step, *words = argv
    names = list(steps)
    if step.startswith("-"):
        raise InputError(f"Which {what}? It comes before the flags: {program} {' | '.join(names)}.")
    if step not in names:
        raise unknown(what, step, names)
    return run(step, words)
