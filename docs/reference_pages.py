"""Sphinx extension: writes reference/, a page of flags for each command and a page for each public module.

Both come from the code: from the parsers of the programs and, by autodoc, from docstrings. Git ignores the pages.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import programs
from sphinx.application import Sphinx

from monolora.cli import COMMANDS
from monolora.cli.flags import spelled
from monolora.recipes.training.argument_checks import NOT_HERE
from monolora.recipes.training.arguments import SFT, LoraArguments
from monolora.recipes.training.help_sections import own_flags, training_defaults
from monolora.recipes.training.keeping import KeepArguments
from monolora.recipes.training.preference_arguments import DPO, KTO, NOT_FOR_PREFERENCES

PROGRAMS = (SFT, DPO, KTO)
Keeps = Callable[[argparse.Action], bool]

# What a program of one's own imports, and under which title it is documented.
MODULES = {
    "The adapter": ("monolora", "monolora.activations", "monolora.sparsity", "monolora.units"),
    "Loading and running": ("monolora.adapters", "monolora.hub", "monolora.inference", "monolora.errors"),
    "Keeping the base's behaviour": ("monolora.keep", "monolora.keep.keeper", "monolora.keep.anchors",
                                     "monolora.keep.report", "monolora.drift", "monolora.refusals"),
    "Merging, export and pruning": ("monolora.merge", "monolora.export", "monolora.prune"),
    "Serving": ("monolora.vllm",),
    "Explaining": ("monolora.explain", "monolora.explain.ablation", "monolora.attribution", "monolora.repair"),
    "Data and tasks": ("monolora.data.tasks", "monolora.data.task", "monolora.data.example", "monolora.data.scoring",
                       "monolora.data.chat_template", "monolora.data.prompt_sets", "monolora.data.mixture",
                       "monolora.data.mixture_config"),
    "Statistics": ("monolora.stats", "monolora.random_effects"),
    "The theory of superposition": ("monolora.recipes.superposition.theory.moments",
                                    "monolora.recipes.superposition.theory.crossings"),
}  # fmt: skip
REEXPORTED = {"monolora.data.tasks": ("BUILT_IN", "load_task")}  # instead of all of ``__all__``


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", lambda app: write(Path(app.srcdir) / "reference"))
    app.connect("autodoc-skip-member", _skips)
    return {"parallel_read_safe": True}


def _skips(app: Sphinx, what: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Whether autodoc leaves a member out: the fields of named tuples, which stand in the docstring of their class."""
    return True if type(member).__name__ == "_tuplegetter" else None


def write(folder: Path) -> None:
    """Write the pages; a page that is as it should be is not touched, so that Sphinx does not read it again."""
    pages = {f"flags/{name}.rst": "\n".join(flag_page(name)) for name in COMMANDS}
    pages |= {f"api/{name}.rst": "\n".join(module_page(name)) for names in MODULES.values() for name in names}
    pages["flags/index.rst"] = "\n".join(flags_index())
    pages["api/index.rst"] = "\n".join(modules_index())
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.rglob("*.rst"):
        if str(path.relative_to(folder)) not in pages:
            path.unlink()


def flags_index() -> Iterator[str]:
    """The page above the commands'."""
    yield from _title("Command-line flags")
    yield "``monolora COMMAND --help`` prints the same in a terminal. These pages are generated from the same parsers."
    yield from ("", ".. list-table::", "   :widths: 25 75", "")
    for name, command in COMMANDS.items():
        yield f"   * - :doc:`monolora {name} <{name}>`"
        yield f"     - {escaped(command.summary)}"
    yield from _toctree(COMMANDS)


def flag_page(name: str) -> Iterator[str]:
    """The flags of a command, or of each of its steps."""
    yield from _title(f"monolora {name}")
    summary = COMMANDS[name].summary
    yield f"{escaped(summary[0].upper() + summary[1:])}."
    for called, parser in programs.command_parsers(name).items():
        if name in programs.STEPS:
            yield from _title(called, "-")
        if name in programs.TRAINING:
            yield from _training_sections(called, parser)
            continue
        positionals = [spelling(action) for action in programs.flags(parser) if not action.option_strings]
        named = ["[flags]"] * any(action.option_strings for action in programs.flags(parser))
        yield from ("", ".. code-block:: text", "", f"   {' '.join([called, *positionals, *named])}")
        yield from _options(called, parser, lambda action: True)


def _training_sections(called: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Our own flags, those of TRL and transformers, and those that have no effect here."""
    (program,) = (each for each in PROGRAMS if each.name == called)
    theirs = next(cls.__name__ for cls in program.training.__mro__ if cls.__module__.startswith("trl."))
    refused = NOT_HERE if program is SFT else NOT_HERE | NOT_FOR_PREFERENCES
    yield "Hyphens and underscores are the same: ``--lora-r``, ``--lora_r``. ``--config FILE`` reads flags from YAML."
    yield from _title(f"Flags of {called}", "-")
    yield "These are defined here, or have a default of their own here."
    kept = {field.name for field in fields(KeepArguments)}
    ours: set[str] = set()
    for title, names in (
        ("What is trained, and on what", {field.name for field in fields(program.own)} - kept),
        ("What is kept of the base", kept),
        ("The adapter", set(own_flags(LoraArguments))),
        ("Training", set(own_flags(*training_defaults(program)))),
    ):
        yield from _title(title, "~")
        yield from _options(called, parser, lambda action, names=names: action.dest in names - refused.keys())
        ours |= names
    yield from _title("Flags of TRL and transformers", "-")
    yield f"These are TRL's ``{theirs}``, ``ModelConfig`` and ``ScriptArguments``; help and defaults are theirs."
    yield from _options(called, parser, lambda action: action.dest not in ours | refused.keys())
    yield from _title("Flags that are refused", "-")
    yield "TRL has these flags too. They would have no effect here, so a run with one of them ends with the reason."
    yield from ("", ".. list-table::", "   :widths: 35 65", "")
    for name, reason in refused.items():
        yield from (f"   * - ``{spelled(name)}``", f"     - {escaped(reason)}")
    yield ""


def _options(called: str, parser: argparse.ArgumentParser, keeps: Keeps) -> Iterator[str]:
    yield from ("", f".. program:: {called}", "")
    for action in filter(keeps, programs.flags(parser)):
        yield f".. option:: {spelling(action)}"
        text = parser._get_formatter()._expand_help(action) if action.help else ""
        if "Default: " in text or text.endswith(" (default: None)"):  # argparse adds one to ours, and to none
            text = re.sub(r" \(default: [^()]*\)$", "", text)
        yield from ("", f"   {escaped(' '.join(text.split()))}", "")


def spelling(action: argparse.Action) -> str:
    """A flag with its values, as in a usage line; of ``--lora_r`` and ``--lora-r`` the second alone."""
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    value = f"{{{','.join(map(str, action.choices))}}}" if action.choices is not None else metavar
    value = {"?": f"[{value}]", "+": f"{value} …", "*": f"[{value} …]", 0: ""}.get(action.nargs, value)
    value = "" if action.const is True else value  # TRL's switches, which take true and false too
    if not action.option_strings:
        return value
    words = [word for word in action.option_strings if word.replace("_", "-") == word or "_" not in word]
    return ", ".join(f"{word} {value}".strip() for word in words)


def modules_index() -> Iterator[str]:
    """The page above the modules'."""
    yield from _title("Python API")
    yield "Each page is generated from the docstrings of a module."
    for title, names in MODULES.items():
        yield from ("", f".. rubric:: {title}", "")
        yield from (f"- :doc:`{name} <{name}>`" for name in names)
    yield from _toctree(name for names in MODULES.values() for name in names)


def module_page(name: str) -> Iterator[str]:
    """The public names of a module."""
    yield from _title(name)
    yield from (f".. automodule:: {name}", f"   :members:{' ' + ', '.join(REEXPORTED.get(name, ()))}".rstrip())


def _title(text: str, line: str = "=") -> tuple[str, ...]:
    return ("", text, line * len(text), "")


def _toctree(names: Iterable[str]) -> Iterator[str]:
    yield from ("", ".. toctree::", "   :hidden:", "")
    yield from (f"   {name}" for name in names)
    yield ""


def escaped(text: str) -> str:
    """Plain text in reStructuredText; what stands between backticks, and flags, as code."""
    parts = re.split(r"(`[^`]+`|(?<!\S)--[a-z][\w-]*)", text)
    parts[::2] = [re.sub(r"([\\*`|_])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"``{part.strip('`')}``" for part in parts[1::2]]
    return "".join(parts)
