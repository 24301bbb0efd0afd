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
        check_words(words)
        names = [word.split("=")[0] for word in words if word.startswith("--")]
        for name in names:  # before argparse finds that something is missing, which may be a misspelt flag
            if name not in self._option_string_actions:
                raise unknown_flag(name, self._option_string_actions)
        found, rest = self.parse_known_args(words)
        if rest:
            raise unknown_flag(rest[0].split("=")[0], self._option_string_actions)
        return found


def check_words(words: Iterable[str]) -> None:
    """Check that records, pages and cards can hold the words of a command line, which are written in UTF-8.

    Raises:
        InputError: for one that is not, such as a file's name in Latin-1.
    """
    for word in words:
        if "\0" in word:
            raise InputError(f"{word!r} has a null character in it, which no name can have.")
        try:
            word.encode()
        except UnicodeEncodeError as error:
            shown = word.encode(errors="surrogateescape").decode(errors="backslashreplace")
            raise InputError(
                f"{shown} is not UTF-8. Rename it (convmv -f latin1 -t utf-8), or type it anew."
            ) from error


def flag_of(name: str) -> str:
    """A field's name as a flag."""
    return f"--{name.replace('_', '-')}"


def settings_in(mapping: Mapping[Any, Any], fields: Iterable[Field[Any]], where: str) -> dict[str, Any]:
    """What a mapping from a YAML file sets, each value read as its flag would read it.

    Args:
        mapping: keys with underscores or hyphens.
        fields: made by :func:`setting`.
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
        if name in found:
            raise InputError(f"{where}: {name} is there twice.")
        if value is not None:
            found[name] = _value(value, known[name], where)
    return found


_SINGLE = {None: "a text", str: "a text", int: "a whole number", float: "a number"}


def _value(value: Any, each: Field[Any], where: str) -> Any:
    """What a file sets a field to."""
    kind = each.metadata.get("type")
    if isinstance(each.default, bool):
        if not isinstance(value, bool):
            raise InputError(f"{where}: {each.name} must be true or false, got {shortened(value)}.")
        return value
    if isinstance(value, list) and isinstance(each.default, tuple):
        return _items(value, each, where)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        wanted = "a list of texts" if isinstance(each.default, tuple) else _SINGLE.get(kind, "a single value")
        raise InputError(f"{where}: {each.name} must be {_wanted(each) or wanted}, got {shortened(value)}.")
    parser = FlagParser("", None)
    parser.add_settings([each])
    try:
        return vars(parser.parse([f"{flag_of(each.name)}={value}"]))[each.name]
    except InputError as error:
        wanted = _wanted(each) or _SINGLE.get(kind, "a single value")
        raise InputError(f"{where}: {each.name} must be {wanted}, got {shortened(value)}.") from error


def _wanted(each: Field[Any]) -> str:
    kind = each.metadata.get("type")
    if "choices" in each.metadata:
        return f"one of {', '.join(map(str, each.metadata['choices']))}"
    return f"a {kind.__name__}" if isinstance(kind, ListOf) else ""


def shortened(value: object) -> str:
    """A value from a file as a message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _items(values: list[Any], each: Field[Any], where: str) -> tuple[Any, ...]:
    """As they stand: commas may be part of a path."""
    given = each.metadata.get("type")
    of = given if isinstance(given, ListOf) else words
    try:
        if any(isinstance(value, bool) or not isinstance(value, (str, int, float)) for value in values):
            raise ValueError
        return tuple(of.kind(str(value)) for value in values)
    except ValueError as error:
        raise InputError(f"{where}: {each.name} must be a {of.__name__}, got {shortened(values)}.") from error


def raise_input_error(message: str) -> NoReturn:
    """Raises: InputError, with an argparse message."""
    message = re.sub(r"--\w+/--", "--", message)  # of both spellings of a flag, the one with hyphens
    raise InputError(f"{message[0].upper()}{message[1:].rstrip('.')}. See --help.")


def unknown_flag(word: str, known: Iterable[str], renamed: Mapping[str, str] | None = None) -> InputError:
    """For a word of the command line that is no flag: the nearest one, spelled with hyphens.

    Args:
        word: it.
        known: the flags that there are.
        renamed: by the name of a flag of other programs or versions, a sentence on what to give instead.
    """
    if not word.startswith("-"):
        return InputError(f"Cannot tell what {word!r} is for; flags begin with --. See --help.")
    if said := (renamed or {}).get(word.lstrip("-").replace("-", "_")):
        return InputError(f"Unknown flag {word}. {said}")
    near = nearest(word, {name.replace("_", "-") for name in known})
    hint = f"Did you mean {' or '.join(near)}?" if near else "See --help."
    return InputError(f"Unknown flag {word}. {hint}")


def nearest(word: str, known: Iterable[str], most: int = 2) -> list[str]:
    """The flags that ``word`` may be meant for: misspelt as a whole, or with mostly the same words in them.

    Letters alone mislead: --early-stopping-patience has most of those of --learning-rate.
    """
    scores = {name: _likeness(word, name) for name in sorted(known)}
    return sorted((name for name in scores if scores[name] >= 0.6), key=lambda name: -scores[name])[:most]


def _likeness(one: str, other: str) -> float:
    """From 0 to 1."""
    ones, others = (re.findall(r"[^-_]+", name.lower()) for name in (one, other))
    whole = _ratio("".join(ones), "".join(others))
    if whole >= 0.85:
        return whole
    alike = [max((_word_likeness(word, each) for each in others), default=0) for word in ones]
    same = 2 * sum(likeness for likeness in alike if likeness >= 0.75) / max(1, len(ones) + len(others))
    if same >= 0.5 and whole >= 0.7:
        return max(same, whole)
    is_part = all(likeness > 0.75 for likeness in alike) and len(others) <= 3  # --epochs, of --num-train-epochs
    return max(same, 0.6 * is_part)


def _word_likeness(one: str, other: str) -> float:
    is_short = one.startswith(other) or other.startswith(one)  # --lora-rank for --lora-r
    return max(_ratio(one, other), 0.75 * is_short)


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
