"""Training that leaves the base as it is where it must: keepers, their anchors, and the report of what was kept.

A *keeper* is a method: it may initialise the adapter, add rows or add a loss. ``silence`` keeps an adapter's units off
on the anchors, ``replay`` trains on the base's own answers beside the task, ``kl`` holds the distributions of the next
token. *Anchors* are prompts with the base's own greedy answers. ``docs/keeping.md`` has the methods and their numbers.

A further method is a subclass of :class:`~monolora.keep.keeper.Keeper`: in a file of yours, named as ``FILE.py:CLASS``,
or in a package that names it in its entry points, as ``monolora.keepers``.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from monolora.errors import InputError, in_one_line, unknown
from monolora.keep.keeper import Keeper
from monolora.keep.kl import BaseKl
from monolora.keep.replay import Replay
from monolora.keep.silence import Silence

KEEPERS: dict[str, type[Keeper]] = {"silence": Silence, "replay": Replay, "kl": BaseKl}


ENTRY_POINTS = "monolora.keepers"
_IN_FILE = re.compile(r"(?P<name>(?P<file>.+\.py):(?P<class>[^:]*))(?::(?P<weight>.*))?")


def parse_keepers(words: Iterable[str]) -> list[Keeper]:
    """Keepers from ``NAME`` or ``NAME:WEIGHT``, in their order; ``none`` stands for no keeper.

    A name is one of :data:`KEEPERS`, of an entry point, or ``FILE.py:CLASS``.

    Raises:
        InputError: for an unknown name, a file without the class, one given twice, or a weight that is no number above
            0.
    """
    keepers: dict[str, Keeper] = {}
    for word in words:
        if word == "none":
            continue
        if in_file := _IN_FILE.fullmatch(word):
            kind, text = _from_file(Path(in_file["file"]), in_file["class"]), in_file["weight"]
        else:
            name, colon, weight = word.partition(":")
            kind, text = _by_name(name), weight if colon else None
        if kind.name in keepers:
            raise InputError(f"--keep {kind.name} is given twice. Keep one of them.")
        keepers[kind.name] = kind(kind.default_weight if text is None else _weight(word, text))
    return list(keepers.values())


def _by_name(name: str) -> type[Keeper]:
    if name in KEEPERS:
        return KEEPERS[name]
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in installed:
        raise unknown("--keep", name, [*KEEPERS, *installed, "none", "FILE.py:CLASS"])
    return _checked(installed[name].load(), f"--keep {name}")


def _from_file(path: Path, name: str) -> type[Keeper]:
    """The class of a keeper in a file of the user's, which is run for it."""
    where = f"--keep {path}:{name}"
    spec = importlib.util.spec_from_file_location(f"monolora_keeper_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"{where}: there is no file {path}. Give FILE.py:CLASS.")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file does
        raise InputError(f"{where}: {path} cannot be imported: {in_one_line(error)}") from error
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if _is_keeper(value) and value.__module__ == module.__name__]
        raise unknown(f"class in --keep {path}:", name, own or ["a subclass of Keeper, of which it has none"])
    return _checked(getattr(module, name), where)


def _is_keeper(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Keeper)


def _checked(kind: Any, where: str) -> type[Keeper]:
    if not _is_keeper(kind):
        raise InputError(f"{where} is no subclass of monolora.keep.keeper.Keeper.")
    missing = [name for name in ("name", "default_weight") if not hasattr(kind, name)]
    if missing:
        raise InputError(f"{where} has no {' and no '.join(missing)}. Set them in the class.")
    checked: type[Keeper] = kind
    return checked


def _weight(word: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 < weight < float("inf"):
        raise InputError(f"--keep {word}: the weight must be a number above 0, got {text!r}.")
    return weight
