"""``--config FILE``: its parsing from the command line, and the settings in the file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any

import yaml

from monolora.cli import packaged_configs
from monolora.cli.flags import FlagParser, ListOf, flag_of, spelled, unknown_flag, words
from monolora.errors import InputError, in_one_line
from monolora.redaction import secret_setting

_MOST_VALUES = 100_000


def split_config(words: list[str]) -> tuple[Path | None, list[str]]:
    """The file after ``--config``, and the other words of the command line.

    Raises:
        InputError: if ``--config`` has no value or is given twice.
    """
    rest: list[str] = []
    paths: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word == "--config":
            paths.append(next(remaining, ""))
        elif word.startswith("--config="):
            paths.append(word.partition("=")[2])
        else:
            rest.append(word)
    if len(paths) > 1:
        raise InputError("--config is given twice. Put everything into one file.")
    if "" in paths:
        raise InputError("--config needs a YAML file.")
    return (Path(paths[0]) if paths else None), rest


def load_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file, or in the packaged one of that name (``monolora configs``).

    Numbers are those of YAML 1.2, where ``1e-5`` is a number; PyYAML reads it as a string.

    Raises:
        InputError: if the file is unreadable or not a mapping, repeats a key, has aliases that expand without bound, or
            holds a token, key or password.
    """
    from monolora.files import read_text  # imports libraries that help and wrong flags do not need

    path = packaged_configs.resolved(path)
    fix = "" if path.exists() else "monolora configs lists those that are packaged."
    text = read_text(path, fix, flag="--config")
    try:
        loader = _Loader(text)
        loader.name = path.name  # for messages
        node = loader.get_single_node()
        if node is not None:
            _check_size(node, path)
        loaded = None if node is None else loader.construct_document(node)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: invalid dates and numbers
        raise InputError(f"--config {path} is not YAML: {in_one_line(error)}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"--config {path} must be a mapping of flags to values.")
    if (name := secret_setting(loaded)) is not None:
        raise InputError(
            f"--config {path}: {name} holds a secret, and files are copied and shared. Leave it out, and set an "
            "environment variable: HF_TOKEN for the hub, WANDB_API_KEY for its logs, --api-key-env NAME for endpoints."
        )
    return loaded


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with numbers of YAML 1.2; a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [(type(key), key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for (key, _), name in zip(node.value, names, strict=False):
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name[1]} occurs twice", key.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _check_size(node: yaml.Node, path: Path) -> None:
    """Limit the document's size with its aliases expanded: nine lines can stand for billions of values.

    Raises:
        InputError: if it is larger.
    """
    sizes: dict[int, float] = {}

    def size(node: yaml.Node) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # for a node that contains itself
            parts = (part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,)))
            sizes[id(node)] = 1 if isinstance(node, yaml.ScalarNode) else 1 + sum(map(size, parts))
        return sizes[id(node)]

    if size(node) > _MOST_VALUES:
        raise InputError(
            f"--config {path}: its aliases (*name) stand for more than {_MOST_VALUES:,} values. Write them out."
        )


def settings_in(mapping: Mapping[Any, Any], fields: Iterable[Field[Any]], where: str) -> dict[str, Any]:
    """The settings in a mapping from a YAML file, with each value parsed as its flag's.

    Args:
        mapping: keys with underscores or hyphens.
        fields: made by :func:`setting`.
        where: file and position, for messages.

    Raises:
        InputError: for an unknown key or an invalid value.
    """
    known = {field.name: field for field in fields}
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise InputError(f"{where}: {unknown_flag(spelled(name), map(spelled, known))}")
        if name in values:
            raise InputError(f"{where}: {name} occurs twice.")
        if value is not None:
            values[name] = _value(value, known[name], where)
    return values


_SINGLE = {None: "a text", str: "a text", int: "a whole number", float: "a number"}


def _value(value: Any, field: Field[Any], where: str) -> Any:
    """The value of a field, parsed."""
    kind = field.metadata["options"].get("type")
    if isinstance(field.default, bool):
        if not isinstance(value, bool):
            raise InputError(f"{where}: {field.name} must be true or false, got {shortened(value)}.")
        return value
    if isinstance(value, list) and isinstance(field.default, tuple):
        return _items(value, field, where)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        wanted = "a list of texts" if isinstance(field.default, tuple) else _SINGLE.get(kind, "a single value")
        raise InputError(f"{where}: {field.name} must be {_wanted(field) or wanted}, got {shortened(value)}.")
    parser = FlagParser("", None)
    parser.add_settings([field])
    try:
        return vars(parser.parse([f"{flag_of(field)}={value}"]))[field.name]
    except InputError as error:
        wanted = _wanted(field) or _SINGLE.get(kind, "a single value")
        raise InputError(f"{where}: {field.name} must be {wanted}, got {shortened(value)}.") from error


def _wanted(field: Field[Any]) -> str:
    kind = field.metadata["options"].get("type")
    if "choices" in field.metadata["options"]:
        return f"one of {', '.join(map(str, field.metadata['options']['choices']))}"
    return f"a {kind.__name__}" if isinstance(kind, ListOf) else ""


def shortened(value: object) -> str:
    """A value from a file, shortened for messages."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _items(values: list[Any], field: Field[Any], where: str) -> tuple[Any, ...]:
    """The items without splitting at commas, which may be part of a path."""
    kind = field.metadata["options"].get("type")
    list_type = kind if isinstance(kind, ListOf) else words
    try:
        if any(isinstance(value, bool) or not isinstance(value, (str, int, float)) for value in values):
            raise ValueError
        return tuple(list_type.kind(str(value)) for value in values)
    except ValueError as error:
        raise InputError(f"{where}: {field.name} must be a {list_type.__name__}, got {shortened(values)}.") from error
