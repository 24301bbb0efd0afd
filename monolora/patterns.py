"""The patterns in an ``adapter_config.json`` that comes from elsewhere, as the names of the modules they match.

PEFT runs them in Python's ``re``, whose time on a name may double with each of its letters. Here they are run by RE2
(through Arrow), whose time is proportional to the name's length. What RE2 has no syntax for (look-around, references)
is not run at all: the modules are then those that the adapter's file holds tensors of.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow
import pyarrow.compute

from monolora.errors import InputError

# Names, and patterns with a single repeated character: whoever runs them, the time is bounded.
_NAME = re.compile(r"[\w.^$\\-]*(?:[*+?][\w.^$\\-]*)?")
_TARGETS = ("target_modules", "exclude_modules", "feedforward_modules")
_VALUES = ("rank_pattern", "alpha_pattern")
_NAMES = ("modules_to_save", "layers_pattern")


def resolve_patterns(config: Any, names: Sequence[str], in_file: Collection[str]) -> None:
    """Replace the patterns of a config by the modules that they match, in place; plain names stay.

    Args:
        config: of any method of PEFT, from a file.
        names: of the modules of the model that it is for.
        in_file: names of the modules that the adapter's file holds tensors of.

    Raises:
        InputError: for a pattern where only names make sense, and for one that RE2 does not take where the file does
            not tell what it matches.
    """
    settings = vars(config)
    for field in _NAMES:
        value = settings.get(field) or ()
        for name in [value] if isinstance(value, str) else value:
            if not _NAME.fullmatch(str(name)):
                raise InputError(f"{field} names {name!r}, which is no module's name. Correct adapter_config.json.")
    if any(_is_pattern(settings.get(field)) for field in _TARGETS):
        _resolve_targets(settings, names, in_file)
    resolve_values(config, names)


def resolve_values(config: Any, names: Sequence[str]) -> None:
    """As :func:`resolve_patterns`, for the keys of ``rank_pattern`` and ``alpha_pattern`` alone."""
    settings = vars(config)
    for field in _VALUES:
        values = settings.get(field) or {}
        if any(map(_is_pattern, values)):
            settings[field] = _by_names(field, values, names)


def check_bounded(config: Any) -> None:
    """Check that the keys of ``rank_pattern`` and ``alpha_pattern`` can be run in Python's ``re``, as vLLM does.

    Raises:
        InputError: naming the first whose time is not bounded.
    """
    for field in _VALUES:
        for key in filter(_is_pattern, vars(config)[field] or {}):
            raise InputError(f"{field} has the pattern {key!r}, which cannot be checked safely. Name modules instead.")


def _is_pattern(value: object) -> bool:
    return isinstance(value, str) and value != "all-linear" and not _NAME.fullmatch(value)


def _resolve_targets(settings: dict[str, Any], names: Sequence[str], in_file: Collection[str]) -> None:
    matches: dict[str, list[str] | None] = {
        field: _matching(settings[field], names) for field in _TARGETS if _is_pattern(settings.get(field))
    }
    if None in matches.values():  # RE2 has no syntax for one of them
        if not in_file:
            field = next(field for field, modules in matches.items() if modules is None)
            raise InputError(
                f"{field} {settings[field]!r} cannot be checked safely. Download the adapter and load it from there, "
                "where its file tells what is meant, or name the modules instead."
            )
        matches = {"target_modules": [name for name in names if name in in_file]}
        settings["exclude_modules"] = settings["layers_to_transform"] = settings["layers_pattern"] = None
    for field, modules in matches.items():
        # One pattern of whole names: those of a list would match as ends of longer names too.
        settings[field] = "|".join(map(re.escape, modules or ()))


def _by_names(field: str, values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Each key as one pattern of whole names, which matches what the key does, in the same order."""
    resolved: dict[str, Any] = {}
    for key, value in values.items():
        modules = _matching(rf"(?:.*\.)?(?:{key})", names) if _is_pattern(key) else None
        if modules is None and _is_pattern(key):
            raise InputError(f"{field} has the pattern {key!r}, which cannot be checked safely. Name modules instead.")
        if modules is None:
            resolved.setdefault(key, value)
        elif modules:  # the first of several that match counts
            resolved.setdefault(f"^(?:{'|'.join(map(re.escape, modules))})", value)
    return resolved


def _matching(pattern: str, names: Sequence[str]) -> list[str] | None:
    """The names that ``pattern`` matches as a whole; None if RE2 does not take it."""
    try:
        matched = pyarrow.compute.match_substring_regex(pyarrow.array(names), pattern=f"^(?:{pattern})$")
    except pyarrow.ArrowInvalid:
        return None
    return [name for name, matches in zip(names, matched.to_pylist(), strict=True) if matches]
