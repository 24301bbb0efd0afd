"""The argparse parsers of all programs: for the pages of flags, and for the check of the commands in the pages."""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

from monolora import cli
from monolora.eval.__main__ import STAGES
from monolora.recipes.superposition.__main__ import STEPS as SUPERPOSITION_STEPS
from monolora.recipes.training.arguments import SFT, Program, make_parser
from monolora.recipes.training.preference_arguments import DPO, KTO
from monolora.recipes.vision.__main__ import STEPS as VISION_STEPS

ROOT = Path(__file__).resolve().parents[1]
STEPS = {"eval": STAGES, "vision": (*VISION_STEPS, "all"), "superposition": tuple(SUPERPOSITION_STEPS)}


# Programs whose help comes from a copy of their parser, by the word of the command and the script that is the same.
TRAINING: dict[str, tuple[Program, ...]] = {"sft": (SFT,), "dpo": (DPO, KTO)}
SCRIPTS = {"recipes/sft.py": SFT, "recipes/dpo.py": DPO}


class _Captured(BaseException):  # passes by the programs' own handling of errors
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def command_parsers(name: str) -> dict[str, argparse.ArgumentParser]:
    """The parser of a command, or those of its steps, by what is typed: ``monolora eval run``."""
    if name in TRAINING:
        return {program.name: make_parser(program) for program in TRAINING[name]}
    calls = [[name, step] for step in STEPS[name]] if name in STEPS else [[name]]
    return {f"monolora {' '.join(words)}": _captured(partial(cli.main, [*words, "--help"])) for words in calls}


def module_parser(name: str) -> argparse.ArgumentParser:
    """The parser of ``python -m NAME``, a program of one step."""
    module = importlib.import_module(name)
    return _captured(lambda: module.main(["--help"]))


def script_parser(path: str) -> argparse.ArgumentParser:
    """The parser of a script of this repository."""
    if path in SCRIPTS:
        return make_parser(SCRIPTS[path])
    with patch.object(sys, "argv", [path, "--help"]), patch.object(sys, "path", [str((ROOT / path).parent), *sys.path]):
        return _captured(lambda: runpy.run_path(str(ROOT / path), run_name="__main__"))


def _captured(program: Callable[[], object]) -> argparse.ArgumentParser:
    """The parser with which a program begins to parse; then the program is stopped."""

    def stop(self: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        raise _Captured(self)

    with patch.object(argparse.ArgumentParser, "parse_known_args", stop):
        try:
            program()
        except _Captured as captured:
            return captured.parser
    raise RuntimeError("the program parses nothing")


def flags(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The actions of a parser, but for its help."""
    yield from (action for action in parser._actions if action.dest != "help")
