"""The flags in a YAML file, with each value as the command line would give it, and the data sets of a mixture."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from trl import TrlParser

from monolora.cli.config_file import load_yaml, shortened
from monolora.cli.flags import unknown_flag
from monolora.data import mixture_config
from monolora.data.mixture_config import Component
from monolora.errors import InputError
from monolora.recipes.training.argument_checks import NOT_HERE, RENAMED

_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


MIXTURE = "datasets"  # TRL's list of a mixture, which is no flag


def read_config(path: Path, parser: TrlParser, classes: Sequence[type]) -> dict[str, Any]:
    """The flags in ``path``, by their names with underscores; its ``env`` goes into the environment, as in TRL.

    Args:
        path: a YAML mapping; keys may be written with underscores or hyphens.
        parser: knows the flags.
        classes: the dataclasses behind the parser, whose annotations say which flags take lists and mappings.

    Raises:
        InputError: if the file cannot be read or is no mapping, a key is no flag, or a value is not of its type. The
            value of :data:`MIXTURE` is not checked here.
    """
    loaded = load_yaml(path)
    environment = loaded.pop("env", None) or {}
    if not isinstance(environment, dict):
        raise InputError(f"--config {path}: env must be a mapping of names to values.")
    os.environ.update({str(name): str(value) for name, value in environment.items()})
    hints: dict[str, Any] = {}
    for cls in classes:
        hints |= get_type_hints(cls)
    values = {}
    for key, value in loaded.items():
        name = str(key).replace("-", "_")
        if name == MIXTURE:
            values[name] = value
            continue
        action = parser._option_string_actions.get(f"--{name}")
        if action is None or action.dest not in hints:
            known = {f"--{name}" for name in hints.keys() - NOT_HERE.keys()}
            raise InputError(f"--config {path}: {unknown_flag(f'--{key}', known, RENAMED)}")
        values[name] = _checked(path, action, value, get_args(hints[name]) or [hints[name]])
    return values


def _checked(path: Path, action: argparse.Action, value: Any, kinds: Sequence[Any]) -> Any:
    """``value`` as the command line would give it; ``kinds`` are the types of the flag's annotation."""
    containers = {get_origin(kind) or kind for kind in kinds}
    if isinstance(value, list) and list in containers:
        return [_scalar(path, action, item, kinds) for item in value]
    if isinstance(value, dict) and dict in containers:
        return value
    if value is None and (action.default is None or type(None) in containers):
        return None
    if isinstance(value, bool) and action.nargs == "?":  # a flag that may stand alone
        absent = False if action.const is True else None
        return action.const if value else absent
    if isinstance(value, bool) and bool not in containers:
        raise InputError(
            f"--config {path}: {action.dest} cannot be {str(value).lower()}. Where it is a word (YAML reads yes, no, "
            "on and off as true and false), put quotes around it."
        )
    scalar = _scalar(path, action, value, kinds)
    return [scalar] if action.nargs == "+" else scalar


def _scalar(path: Path, action: argparse.Action, value: Any, kinds: Sequence[Any]) -> Any:
    convert: Callable[[str], Any] = action.type if callable(action.type) else str
    try:
        if not isinstance(value, (str, int, float)):
            raise ValueError
        converted = convert(str(value))
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        wanted = next((words for kind, words in _KINDS.items() if kind in kinds), "a single value")
        raise InputError(f"--config {path}: {action.dest} must be {wanted}, got {shortened(value)}.") from error
    if action.choices is not None and converted not in action.choices:
        raise InputError(
            f"--config {path}: {action.dest} must be one of {', '.join(action.choices)}, got {shortened(value)}."
        )
    return converted


def split_mixture(words: list[str], from_file: dict[str, Any], path: Path | None) -> tuple[list[str], list[Component]]:
    """The words without a mixture's data sets, and these; none for a single data set.

    Raises:
        InputError: for what is no mixture.
    """
    of_file = from_file.pop(MIXTURE, None)
    if of_file is not None and not {"dataset", "dataset_name"}.isdisjoint(from_file):
        raise InputError(f"--config {path} has both dataset and {MIXTURE}. Keep one of them.")
    rest, names = without_values(words, "--dataset")
    if len(names) > 1 or (names and mixture_config.split_share(names[0]).fraction is not None):
        for name in ("dataset", "dataset_name"):
            from_file.pop(name, None)
        return rest, mixture_config.from_words(names)
    if (
        of_file is not None
        and not names
        and not any(word.startswith(("--dataset_name", "--dataset-name")) for word in words)
    ):
        return words, mixture_config.from_settings(of_file, f"--config {path}")
    return words, []


def without_values(words: Sequence[str], flag: str) -> tuple[list[str], list[str]]:
    """The words without a flag of one value, and the values of each of its mentions."""
    rest: list[str] = []
    values: list[str] = []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name != flag:
            rest.append(word)
        elif equals:
            values.append(value)
        elif (following := next(remaining, "")) and not following.startswith("--"):
            values.append(following)
        else:
            rest += filter(None, (word, following))  # without a value, which argparse reports
    return rest, values
