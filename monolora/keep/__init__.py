"""Training that leaves the base as it is where it must: keepers, their anchors, and the report of what was kept.

A *keeper* is a method: it may initialise the adapter, add rows or add a loss. ``silence`` keeps an adapter's units off
on the anchors, ``replay`` trains on the base's own answers beside the task, ``kl`` holds the distributions of the next
token. *Anchors* are prompts with the base's own greedy answers. ``docs/keeping.md`` has the methods and their numbers.

A further method is a file with a subclass of :class:`~monolora.keep.keeper.Keeper` and its name in :data:`KEEPERS`.
"""

from __future__ import annotations

from collections.abc import Iterable

from monolora.errors import InputError, unknown
from monolora.keep.keeper import Keeper
from monolora.keep.kl import BaseKl
from monolora.keep.replay import Replay
from monolora.keep.silence import Silence

KEEPERS: dict[str, type[Keeper]] = {"silence": Silence, "replay": Replay, "kl": BaseKl}


def parse_keepers(words: Iterable[str]) -> list[Keeper]:
    """Keepers from ``NAME`` or ``NAME:WEIGHT``, in their order; ``none`` stands for no keeper.

    Raises:
        InputError: for an unknown name, one given twice, or a weight that is no number above 0.
    """
    keepers: dict[str, Keeper] = {}
    for word in words:
        name, colon, text = word.partition(":")
        if name == "none" and not colon:
            continue
        if name not in KEEPERS:
            raise unknown("--keep", name, [*KEEPERS, "none"])
        if name in keepers:
            raise InputError(f"--keep {name} is given twice. Keep one of them.")
        keepers[name] = KEEPERS[name](_weight(word, text) if colon else KEEPERS[name].default_weight)
    return list(keepers.values())


def _weight(word: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 < weight < float("inf"):
        raise InputError(f"--keep {word}: the weight must be a number above 0, got {text!r}.")
    return weight
