"""Command lines whose every complaint is one line, with the nearest right flag."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, field, fields
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar

from monolora.errors import InputError


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Settings = TypeVar("Settings", bound=_Dataclass)


def setting(default: Any, help: str, **options: Any) -> Any:  # noqa: A002 (argparse's own name)
    """A field of a settings dataclass that is a flag.

    Args:
        default: the value without the flag; a tuple for flags with several values.
        help: one line, for ``--help``.
        options: for ``argparse``'s ``add_argument``.
    """
    return field(default=default, metadata={"help": help} | options)


class ListOf:
    """The type of flags whose value is a list with commas.

    Args:
        kind: of its items.
    """

    def __init__(self, kind: Callable[[str], Any]) -> None:
        self.kind = kind
        self.__name__ = f"list of {kind.__name__}"  # for argparse's message

    def __call__(self, text: str) -> tuple[Any, ...]:
        """The items in ``text``."""
        return tuple(self.kind(word) for word in (part.strip() for part in text.split(",")) if word)


words, whole_numbers, numbers = ListOf(str), ListOf(int), ListOf(float)


class FlagParser(argparse.ArgumentParser):
    """An ``argparse`` parser that raises :class:`InputError` where argparse prints its usage and exits."""

    def __init__(self, prog: str, description: str | None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise_input_error(message)

    def add_settings(self, fields: Iterable[Field[Any]], given: Mapping[str, Any] | None = None) -> None:
        """A flag for each field made by :func:`setting`; what is appended to, is appended to what was ``given``."""
        for each in fields:
            options = dict(each.metadata)
            if isinstance(each.default, bool):
                options["action"] = argparse.BooleanOptionalAction if each.default else "store_true"
            elif each.default not in ("", (), None):
                default = ",".join(map(str, each.default)) if isinstance(each.default, tuple) else each.default
                options["help"] += f" (default: {default})"
            if options.get("action") == "append":  # argparse appends to a list only
                options["default"] = list((given or {}).get(each.name, ()))
            self.add_argument(flag_of(each.name), **options)

    def parse_into(self, words: Sequence[str], kind: type[Settings]) -> Settings:
        """The settings that ``words`` give; the fields of ``kind``, made by :func:`setting`, become flags.

        Raises:
            InputError: as :meth:`parse`.
        """
        return self.parse_with(words, None, kind)[1]

    def parse_with(self, words: Sequence[str], name: str | None, kind: type[Settings]) -> tuple[Any, Settings]:
        """As :meth:`parse_into`, and beside the settings the value of an argument that was added before.

        Args:
            words: of the command line.
            name: of that argument; None for none.
            kind: of the settings.

        Raises:
            InputError: as :meth:`parse`.
        """
        self.add_settings(fields(kind))
        typed = vars(self.parse(words))
        known = {each.name for each in fields(kind)}
        settings = kind(**{key: value for key, value in typed.items() if key in known and value is not None})
        return (typed[name] if name else None), settings

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The flags in ``words``.

        Raises:
            InputError: for flags that are unknown or missing, and values that cannot be.
        """
        names = [word.split("=")[0] for word in words if word.startswith("--")]
        for name in names:  # before argparse finds that something is missing, which may be a misspelt flag
            if name not in self._option_string_actions:
                raise unknown_flag(name, self._option_string_actions)
        found, rest = self.parse_known_args(words)
        if rest:
            raise unknown_flag(rest[0].split("=")[0], self._option_string_actions)
        return found


def flag_of(name: str) -> str:
    """A field's name as a flag."""
    return f"--{name.replace('_', '-')}"


def settings_in(mapping: Mapping[Any, Any], fields: Iterable[Field[Any]], prog: str, where: str) -> dict[str, Any]:
    """What a mapping from a YAML file sets, each value read as its flag would read it.

    Args:
        mapping: keys with underscores or hyphens.
        fields: made by :func:`setting`.
        prog: the program, for messages.
        where: the file, and the place in it, for messages.

    Raises:
        InputError: for a key that is no field, and a value that cannot be.
    """
    known = {each.name: each for each in fields}
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise InputError(f"{where}: {unknown_flag(flag_of(name), map(flag_of, known))}")
        if isinstance(value, list) and isinstance(known[name].default, tuple):
            found[name] = _items(value, known[name], where)
        elif value is not None and (value is not False or known[name].default is True):
            parser = FlagParser(prog, None)
            parser.add_settings([known[name]])
            found[name] = vars(parser.parse([_as_word(name, value)]))[name]
    return found


def _items(values: list[Any], each: Field[Any], where: str) -> tuple[Any, ...]:
    """As they stand: commas may be part of a path."""
    given = each.metadata.get("type")
    of = given if isinstance(given, ListOf) else words
    try:
        return tuple(of.kind(str(value)) for value in values)
    except ValueError as error:
        raise InputError(f"{where}: {each.name} must be a {of.__name__}, got {values}.") from error


def _as_word(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag_of(name) if value else flag_of(f"no_{name}")
    return f"{flag_of(name)}={value}"


def raise_input_error(message: str) -> NoReturn:
    """Raises: InputError, with an argparse message."""
    message = re.sub(r"--\w+/--", "--", message)  # of both spellings of a flag, the one with hyphens
    raise InputError(f"{message[0].upper()}{message[1:].rstrip('.')}. See --help.")


def unknown_flag(word: str, known: Iterable[str]) -> InputError:
    """For a word of the command line that is no flag: the nearest one, spelled with hyphens."""
    if not word.startswith("-"):
        return InputError(f"Cannot tell what {word!r} is for; flags begin with --. See --help.")
    near = difflib.get_close_matches(word.replace("_", "-"), {name.replace("_", "-") for name in known}, n=2)
    hint = f"Did you mean {' or '.join(near)}?" if near else "See --help."
    return InputError(f"Unknown flag {word}. {hint}")
