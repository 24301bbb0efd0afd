"""``monolora sft``: help and misspelt flags are answered at once, and everything else by :mod:`monolora.recipes.sft`.

The flags are those of TRL's and transformers' dataclasses, and importing these takes several times as long as importing
torch. So ``flags.json`` holds a copy, for the versions of the two and the tasks that it was made with; with others, a
new one is made. After a change of the flags, of the versions or of the tasks:

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
from pathlib import Path
from typing import Any

import monolora
from monolora.cli.config_file import split_config
from monolora.cli.flags import unknown_flag

COPY = Path(__file__).with_name("flags.json")
_COPIED = ("option_strings", "dest", "nargs", "default", "choices", "help", "metavar")


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status.

    Raises:
        InputError: for an unknown flag.
    """
    answer(argv, read_copy())
    status: int = importlib.import_module("monolora.recipes.sft").main(argv)
    return status


def read_copy() -> dict[str, Any]:
    """The copy of the flags, made again if it is of other versions."""
    copy: dict[str, Any] = json.loads(COPY.read_text(encoding="utf-8"))
    return copy if copy["origin"] == origin() else make_copy()


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
        help_parser(copy["flags"]).print_help()
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
    lines = ["usage: monolora sft [flags]   (flags from YAML: --config FILE, or a name that monolora configs lists)"]
    for title, names in copy["sections"].items():
        lines += ["", f"{title}:"]
        for name in names:
            lines += _help_lines(flags[name], width)
    return "\n".join([*lines, "", "All other flags of TRL's SFTConfig work too: monolora sft --help-all."])


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


def help_parser(flags: list[dict[str, Any]]) -> argparse.ArgumentParser:
    """A parser that prints the help of TRL's."""
    parser = argparse.ArgumentParser("monolora sft", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for flag in flags:
        options = {key: flag[key] for key in ("dest", "default", "help")}
        if flag["nargs"] == 0:
            parser.add_argument(*flag["option_strings"], action="store_const", **options)
        else:
            options |= {key: flag[key] for key in ("nargs", "choices", "metavar")}
            parser.add_argument(*flag["option_strings"], **options)
    return parser


def make_copy() -> dict[str, Any]:
    """The part of the real parser that help and suggestions need, as JSON values."""
    from monolora.recipes.training.argument_checks import RENAMED
    from monolora.recipes.training.arguments import make_parser, sections, suggested

    parser = make_parser()
    flags = [{key: getattr(action, key) for key in _COPIED} for action in parser._actions if action.dest != "help"]
    names = {"renamed": RENAMED, "suggested": sorted(suggested(parser)), "sections": sections()}
    parts = {"origin": origin(), **names, "flags": flags}
    copy: dict[str, Any] = json.loads(json.dumps(parts, default=list))  # choices may be the keys of a dict
    return copy


def _as_json(copy: Mapping[str, Any]) -> str:
    """JSON with one line a flag, for diffs."""
    parts = {key: json.dumps(value, ensure_ascii=False) for key, value in copy.items()}
    parts["flags"] = "[\n" + ",\n".join(json.dumps(flag, ensure_ascii=False) for flag in copy["flags"]) + "\n]"
    return "{" + ",\n".join(f'"{key}": {value}' for key, value in parts.items()) + "}\n"


if __name__ == "__main__":
    COPY.write_text(_as_json(make_copy()), encoding="utf-8")
