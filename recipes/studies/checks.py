"""Every command of a study, looked at by the program that it is for, before anything runs."""

from __future__ import annotations

from collections.abc import Callable

from monolora.errors import InputError
from monolora.eval import command_line
from monolora.recipes import judge
from monolora.recipes.studies.cells import Cell, planned
from monolora.recipes.studies.settings import Study
from monolora.recipes.training import arguments

_LOOKERS: dict[str, Callable[[list[str]], object]] = {
    "judge": judge.parse,
    "sft": arguments.parse,
    "eval": lambda words: command_line.parse(words[1:], "monolora eval run"),
}


def check_commands(study: Study) -> None:
    """Check one command of each kind of cell, as those that differ by rate and seed only are alike.

    Raises:
        InputError: naming the cell and the flag.
    """
    seen = set()
    for cell in planned(study):
        kind = cell.name.partition(", lr ")[0]
        if kind not in seen:
            seen.add(kind)
            _check(cell)


def _check(cell: Cell) -> None:
    program, *words = cell.words
    if "--checkpoints" in words:  # which are not there yet
        words = words[: words.index("--checkpoints")]
    try:
        _LOOKERS[program](words)
    except InputError as error:
        raise InputError(f"{cell.name}: {error}") from error
