"""The command lines in Markdown, checked by the parsers of their programs; nothing is run."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn
from unittest.mock import patch

from accelerate.commands.launch import launch_command_parser

from docs import programs
from monolora.cli import COMMANDS
from monolora.cli.config_file import split_config
from monolora.errors import InputError
from monolora.recipes.training.command import method_of

ROOT = Path(__file__).parents[2]
# nothing of these is checked
OTHERS = (
    "bash", "cat", "curl", "docker", "echo", "export", "mkdir", "pip", "pytest", "ray", "sbatch", "scancel", "source",
    "until", "vllm",
)  # fmt: skip
OTHER_MODULES = ("pytest", "vllm.entrypoints.openai.api_server")
_BLOCK = re.compile(r"^( *)```bash\n(.*?)^\1```", re.M | re.S)
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_INLINE = re.compile(r"(monolora [a-z-]+|accelerate launch|python benchmarks/\S+|python recipes/\S+) .*--")
_PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*|…|<.*>|\$.*")
_ASSIGNMENT = re.compile(r"[A-Za-z_]+=(.*)", re.S)
_IN_REPOSITORY = re.compile(r"(recipes|eval|benchmarks|tests)/.*\.(py|yaml|jinja)")


class WrongCommandError(Exception):
    """A command line that its program would refuse."""


def in_blocks(text: str) -> Iterator[str]:
    """The command lines of the fenced bash blocks, continued lines joined, comments and empty lines left out."""
    for block in _BLOCK.finditer(text):
        for line in re.sub(r"\\\n", " ", block[2]).splitlines():
            if line.strip() and not line.strip().startswith("#"):
                yield " ".join(line.split("  #")[0].split())


def inline(text: str) -> Iterator[str]:
    """The command lines with flags that stand as code in the text."""
    for code in _CODE.finditer(re.sub(r"```.*?```", "", text, flags=re.S)):
        if _INLINE.match(code[1]):
            yield code[1]


def check(line: str, *, whole: bool = True) -> None:
    """Check a command line.

    Args:
        line: as typed; capitals, ``<…>`` and ``…`` stand for any value.
        whole: whether it can be typed so; of a part, which may lack values and arguments, the flags alone are checked.

    Raises:
        WrongCommandError: for an unknown program, flag, value, make target, or file of this repository.
    """
    words = shlex.split(line, comments=True)
    while words and (value := _ASSIGNMENT.fullmatch(words[0])):
        if value[1].startswith("$("):
            return
        words = words[1:]
    if words[-1] == "…" and not words[-2].startswith("--"):
        words = words[:-1]
    for word in words:
        if _IN_REPOSITORY.fullmatch(word) and not (ROOT / word).exists():
            raise WrongCommandError(f"{line}: there is no {word}")
    try:
        _check(words, whole)
    except (WrongCommandError, InputError) as error:
        raise WrongCommandError(f"{line}: {error}") from error


def _check(words: Sequence[str], whole: bool) -> None:
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "make":
        if unknown := set(rest) - make_targets():
            raise WrongCommandError(f"no such target: {', '.join(unknown)}")
    elif program == "monolora":
        _check_monolora(rest, whole)
    elif program == "accelerate":
        _check_launch(rest, whole)
    elif program == "python":
        _check_python(rest, whole)
    elif program not in OTHERS:
        raise WrongCommandError("no such program is known to tests/support/commands.py")


@cache
def make_targets() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


def _check_monolora(words: Sequence[str], whole: bool) -> None:
    name, *rest = words
    if name in ("--help", "COMMAND"):
        return
    if name not in COMMANDS:
        raise WrongCommandError(f"no such command: {name}")
    parsers = _command_parsers(name)
    if name in programs.STEPS:
        step, *rest = rest or [""]
        if step == "STEP":
            step = programs.STEPS[name][0]
        if f"monolora {name} {step}" not in parsers:
            raise WrongCommandError(f"no such step: {step}")
        name = f"{name} {step}"
    if name in programs.TRAINING:
        rest = split_config(list(rest))[1]
    if name == "dpo" and method_of(list(rest)) == "kto":
        name = "dpo --method kto"
    _check_flags(parsers[f"monolora {name}"], rest, whole)


def _check_launch(words: Sequence[str], whole: bool) -> None:
    if words[:1] != ["launch"]:
        raise WrongCommandError("accelerate launch alone is known")
    launch = _parsed(launch_command_parser(), words[1:])
    program = ["-m", launch.training_script] if launch.module else [launch.training_script]
    _check_python([*program, *launch.training_script_args], whole)


def _check_python(words: Sequence[str], whole: bool) -> None:
    if words[0] == "-c":
        return
    if "/" not in words[0] and words[0].endswith(".py"):  # on the page; its words may be commands
        for word in words[1:]:
            if word.startswith("monolora "):
                check(word, whole=whole)
        return
    if words[0] != "-m":
        _check_script(words[0], words[1:], whole)
        return
    module, rest = words[1], list(words[2:])
    if module in OTHER_MODULES or _is_of_tests(module):
        return
    if module == "eval":
        _check_monolora(["eval", *rest], whole)
    elif step := re.fullmatch(r"(?:monolora\.)?recipes\.(vision|superposition)\.(\w+)", module):
        _check_monolora([step[1], step[2], *rest], whole)
    else:
        raise WrongCommandError(f"no such module is known: {module}")


def _check_script(path: str, words: Sequence[str], whole: bool) -> None:
    if not (ROOT / path).is_file():
        raise WrongCommandError(f"there is no {path}")
    words = split_config(list(words))[1] if path in programs.SCRIPTS else words
    _check_flags(_script_parser(path), words, whole)


def _is_of_tests(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    return module.startswith("tests.") and (path.with_suffix(".py").exists() or (path / "__main__.py").exists())


def _check_flags(parser: argparse.ArgumentParser, words: Sequence[str], whole: bool) -> None:
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in parser._option_string_actions:
            raise WrongCommandError(f"no such flag: {word}")
    if "--help" in words or not whole:
        return
    try:
        _parsed(parser, words)
    except (WrongCommandError, InputError):
        _parsed(parser, ["1" if _PLACEHOLDER.fullmatch(word) else word for word in words])  # such as --seed N


def _parsed(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    def error(message: str) -> NoReturn:
        raise WrongCommandError(message)

    with patch.object(parser, "error", error):
        return argparse.ArgumentParser.parse_args(parser, list(words))


_command_parsers = cache(programs.command_parsers)
_script_parser = cache(programs.script_parser)
