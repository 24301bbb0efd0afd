"""``monolora sft`` and ``monolora dpo``: help and misspelt flags are answered at once, the rest by their programs.

The flags are those of TRL's and transformers' dataclasses, and importing these takes several times as long as importing
torch. So files beside this one hold copies, for the versions of the two and the tasks that they were made with; with
others, a new one is made. After a change of the flags, of the versions or of the tasks:

    python -m monolora.recipes.training.command
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import shutil
import textwrap
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import monolora
from monolora.cli.config_file import load_yaml, split_config
from monolora.cli.flags import unknown_flag
from monolora.errors import unknown

# The copy of each set of flags: a method of ``monolora dpo`` has TRL's config of its own.
COPIES = {name: Path(__file__).with_name(file) for name, file in {
    "sft": "flags.json", "dpo": "flags_dpo.json", "kto": "flags_kto.json",
}.items()}  # fmt: skip
METHODS = ("dpo", "kto")
_COPIED = ("option_strings", "dest", "nargs", "default", "choices", "help", "metavar")


def main(argv: list[str]) -> int:
    """``monolora sft`` from the command line; returns the exit status.

    Raises:
        InputError: for an unknown flag.
    """
    return _run("sft", "monolora.recipes.sft", argv)


def preferences(argv: list[str]) -> int:
    """``monolora dpo`` from the command line; returns the exit status.

    Raises:
        InputError: for an unknown flag or method.
    """
    return _run(method_of(argv), "monolora.recipes.dpo", argv)


def _run(flags: str, module: str, argv: list[str]) -> int:
    answer(argv, read_copy(flags))
    status: int = importlib.import_module(module).main(argv)
    return status


def method_of(argv: list[str]) -> str:
    """The method that ``--method`` means on the command line or in the file of ``--config``, which decides the flags.

    Raises:
        InputError: if there is no such method.
    """
    path, words = split_config(argv)
    named = []
    for word, after in zip_longest(words, words[1:], fillvalue=""):
        flag, equals, value = word.partition("=")
        if flag == "--method":
            named.append(value if equals else after)
    method = named[-1] if named else (load_yaml(path).get("method", METHODS[0]) if path else METHODS[0])
    if method not in METHODS:
        raise unknown("--method", str(method), METHODS)
    return str(method)


def read_copy(flags: str = "sft") -> dict[str, Any]:
    """The copy of a set of flags, made again if it is of other versions."""
    copy: dict[str, Any] = json.loads(COPIES[flags].read_text(encoding="utf-8"))
    return copy if copy["origin"] == origin() else make_copy(flags)


def answer(argv: list[str], copy: Mapping[str, Any]) -> None:
    """Print the help and exit if ``--help`` or ``--help-all`` is among the flags; do nothing if all flags are known.

    Args:
        argv: the words of the command line.
        copy: of the flags (:func:`make_copy`).

    Raises:
        InputError: for an unknown flag.
    """
    words = split_config(argv)[1]
    if "--help-all" in words:
        help_parser(copy).print_help()
        raise SystemExit(0)
    if not {"-h", "--help"}.isdisjoint(words):
        print(short_help(copy))
        raise SystemExit(0)
    known = {option for flag in copy["flags"] for option in flag["option_strings"]}
    for name in (word.partition("=")[0] for word in words if word.startswith("--")):
        if name not in known:
            raise unknown_flag(name, copy["suggested"], copy["renamed"])


def short_help(copy: Mapping[str, Any]) -> str:
    """The flags that are ours or used often, by what they are for."""
    width = min(shutil.get_terminal_size().columns, 120)
    flags = {flag["dest"]: flag for flag in copy["flags"]}
    lines = [f"usage: {copy['program']} [flags]   (flags from YAML: --config FILE, or a name of monolora configs)"]
    for title, names in copy["sections"].items():
        lines += ["", f"{title}:"]
        for name in names:
            lines += _help_lines(flags[name], width)
    more = f"All other flags of TRL's {copy['config']} work too: {copy['program']} --help-all."
    return "\n".join([*lines, "", more])


_COLUMN = 34


def _help_lines(flag: Mapping[str, Any], width: int) -> list[str]:
    default = flag["default"]
    text = " ".join(flag["help"].split())
    if len(text) > 200:  # TRL's: --help-all has the rest
        text = text.partition(". ")[0]
    if default not in (None, False, "", []) and "Default:" not in text:
        text = f"{text.rstrip('.')} (default: {default})."
    start = f"  --{flag['dest'].replace('_', '-')}"
    if not isinstance(default, bool):
        start += " VALUE …" if flag["nargs"] in ("+", "*") else " VALUE"
    lines = textwrap.wrap(text, max(20, width - _COLUMN))
    if len(start) >= _COLUMN:
        lines.insert(0, "")
    return [
        f"{left:{_COLUMN}}{right}".rstrip() for left, right in zip([start, *[""] * len(lines)], lines, strict=False)
    ]


def origin() -> dict[str, Any]:
    """Dependencies of the flags and their help: versions of the libraries that define them, and the tasks."""
    tasks = Path(monolora.__file__).with_name("data") / "tasks"
    versions = {name: importlib.metadata.version(name) for name in ("transformers", "trl")}
    return {**versions, "tasks": sorted(path.stem for path in tasks.glob("*.py"))}


def help_parser(copy: Mapping[str, Any]) -> argparse.ArgumentParser:
    """A parser that prints the help of TRL's."""
    parser = argparse.ArgumentParser(copy["program"], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for flag in copy["flags"]:
        options = {key: flag[key] for key in ("dest", "default", "help")}
        if flag["nargs"] == 0:
            parser.add_argument(*flag["option_strings"], action="store_const", **options)
        else:
            options |= {key: flag[key] for key in ("nargs", "choices", "metavar")}
            parser.add_argument(*flag["option_strings"], **options)
    return parser


def make_copy(flags: str = "sft") -> dict[str, Any]:
    """The part of the real parser that help and suggestions need, as JSON values."""
    from monolora.recipes.training.argument_checks import RENAMED
    from monolora.recipes.training.arguments import SFT, make_parser, suggested
    from monolora.recipes.training.help_sections import sections
    from monolora.recipes.training.preference_arguments import DPO, KTO

    program = {"sft": SFT, "dpo": DPO, "kto": KTO}[flags]
    parser = make_parser(program)
    copied = [{key: getattr(action, key) for key in _COPIED} for action in parser._actions if action.dest != "help"]
    names = {"renamed": RENAMED, "suggested": sorted(suggested(parser)), "sections": sections(program)}
    theirs = next(cls for cls in program.training.__mro__ if cls.__module__.startswith("trl."))
    called = {"program": program.name, "config": theirs.__name__}
    parts = {"origin": origin(), **called, **names, "flags": copied}
    copy: dict[str, Any] = json.loads(json.dumps(parts, default=list))  # choices may be the keys of a dict
    return copy


def _as_json(copy: Mapping[str, Any]) -> str:
    """JSON with one line a flag, for diffs."""
    parts = {key: json.dumps(value, ensure_ascii=False) for key, value in copy.items()}
    parts["flags"] = "[\n" + ",\n".join(json.dumps(flag, ensure_ascii=False) for flag in copy["flags"]) + "\n]"
    return "{" + ",\n".join(f'"{key}": {value}' for key, value in parts.items()) + "}\n"


if __name__ == "__main__":
    for name, path in COPIES.items():
        path.write_text(_as_json(make_copy(name)), encoding="utf-8")
