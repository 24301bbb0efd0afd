"""Settings as frozen dataclasses whose fields are flags; every complaint is one line, with the nearest right flag.

    @dataclass(frozen=True, kw_only=True)
    class Prune(Flags):
        adapter: str = setting(REQUIRED, "an adapter folder", positional=True)
        units: int = setting(8, "units that are taken out", type=int, at_least=1)

    settings = FlagParser("monolora prune", __doc__).parse_into(words, Prune)

A field defines its flag completely: default, help, type and range.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, NamedTuple, NoReturn, TypeVar

from monolora.errors import InputError
from monolora.redaction import is_secret_name, remember

REQUIRED: Any = MISSING  # as a setting's default


class Range(NamedTuple):
    """Bounds of a number; None for no bound. Only the range without any bound contains NaN and infinity."""

    at_least: float | None
    above: float | None
    at_most: float | None
    below: float | None

    def has(self, value: float) -> bool:
        """Whether ``value`` is in the range."""
        return self == _ANY or (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
            and math.isfinite(value)
        )

    def __str__(self) -> str:
        bounds = zip(("at least", "above", "at most", "below"), self, strict=True)
        return " and ".join(f"{word} {bound:,g}" for word, bound in bounds if bound is not None)


_ANY = Range(None, None, None, None)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Base of all settings: fields made by :func:`setting`, each a flag, and by :func:`group`."""

    def check(self) -> None:
        """Check each value against its field's range. Classes with more to check extend this.

        Raises:
            InputError: naming the flag.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if "group" in field.metadata:
                value.check()
            else:
                _check_range(field, value)
                _check_items(field, value)


FlagsT = TypeVar("FlagsT", bound=Flags)


def setting(
    default: Any,
    help: str,  # noqa: A002 (argparse's own name)
    *,
    flag: str = "",
    positional: bool = False,
    items: Sequence[str] = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    **options: Any,
) -> Any:
    """A field of a settings dataclass that is a flag.

    Args:
        default: the value without the flag; a tuple for flags with several values; or :data:`REQUIRED`.
        help: one line, for ``--help``, which shows the default too.
        flag: its name, if not the field's.
        positional: for an argument without a name.
        items: for a list of words, the allowed ones, each at most once.
        at_least, above, at_most, below: the range of the number, or of each number of a tuple.
        options: for ``argparse``'s ``add_argument``.
    """
    metadata = {
        "flag": flag,
        "positional": positional,
        "items": tuple(items),
        "range": Range(at_least, above, at_most, below),
        "options": {"help": help} | options,
    }
    return dataclasses.field(default=default, metadata=metadata)


def group(kind: type[FlagsT]) -> FlagsT:
    """A field that holds settings of another class, whose flags are added to those of this class."""
    grouped: FlagsT = dataclasses.field(default_factory=kind, metadata={"group": kind})
    return grouped


def settings_of(kind: type[Flags]) -> Iterator[Field[Any]]:
    """The fields of a class that are flags, with those of its groups in order."""
    for field in fields(kind):
        if "group" in field.metadata:
            yield from settings_of(field.metadata["group"])
        else:
            yield field


def _check_range(field: Field[Any], value: Any) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, (int, float)) and not field.metadata["range"].has(number):
            raise InputError(f"{flag_of(field)} must be {field.metadata['range']}, got {number}.")


def _check_items(field: Field[Any], value: Any) -> None:
    choices = field.metadata["items"]
    if choices and (not value or len(set(value)) < len(value) or not set(value) <= set(choices)):
        raise InputError(
            f"{flag_of(field)} takes {', '.join(choices)}, each once; got {', '.join(value) or 'nothing'}."
        )


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

    def add_settings(self, fields: Iterable[Field[Any]], initial: Mapping[str, Any] | None = None) -> None:
        """Add a flag for each field made by :func:`setting`.

        Args:
            fields: of settings.
            initial: values that flags with ``action="append"`` are appended to, by name.
        """
        for field in fields:
            options = dict(field.metadata["options"])
            if field.metadata["positional"]:
                self.add_argument(field.name, **options)
                continue
            if field.default is REQUIRED:
                options["required"] = True
            elif isinstance(field.default, bool):
                options["action"] = argparse.BooleanOptionalAction if field.default else "store_true"
            elif field.default not in ("", (), None):
                default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
                options["help"] += f" (default: {default})"
            if options.get("action") == "append":  # argparse appends to a list only
                options["default"] = list((initial or {}).get(field.name, ()))
            self.add_argument(flag_of(field), dest=field.name, **options)

    def parse_into(self, words: Sequence[str], kind: type[FlagsT]) -> FlagsT:
        """The validated settings in ``words``; the fields of ``kind`` become flags.

        Raises:
            InputError: as :meth:`parse`, and for invalid values.
        """
        self.add_settings(settings_of(kind))
        settings = _settings(kind, vars(self.parse(words)))
        settings.check()
        return settings

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The flags in ``words``.

        Raises:
            InputError: for unknown or missing flags and invalid values.
        """
        check_words(words)
        names = [word.split("=")[0] for word in words if word.startswith("--")]
        for name in names:  # before argparse reports as missing what may be misspelt
            if name not in self._option_string_actions:
                raise unknown_flag(name, self._option_string_actions)
        flags, rest = self.parse_known_args(words)
        if rest:
            raise unknown_flag(rest[0].split("=")[0], self._option_string_actions)
        return flags


def _settings(kind: type[FlagsT], parsed: Mapping[str, Any]) -> FlagsT:
    values: dict[str, Any] = {}
    for field in fields(kind):
        if "group" in field.metadata:
            values[field.name] = _settings(field.metadata["group"], parsed)
        elif parsed[field.name] is not None:
            values[field.name] = frozen(parsed[field.name])
    return kind(**values)


def frozen(value: Any) -> Any:
    """The value with tuples for argparse's and YAML's lists."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def check_words(words: Iterable[str]) -> None:
    """Check that records, pages and cards can hold the words of a command line, which are written in UTF-8.

    Raises:
        InputError: for a word in another encoding, such as a file name in Latin-1.
    """
    for word in words:
        if "\0" in word:
            raise InputError(f"{word!r} contains a null character, which is not allowed in a name.")
        try:
            word.encode()
        except UnicodeEncodeError as error:
            escaped = word.encode(errors="surrogateescape").decode(errors="backslashreplace")
            raise InputError(f"{escaped} is not UTF-8. Rename it (convmv -f latin1 -t utf-8), or retype it.") from error


def flag_of(field: Field[Any]) -> str:
    """The flag of a field made by :func:`setting`."""
    if field.metadata["positional"]:
        return field.name
    return field.metadata["flag"] or spelled(field.name)


def spelled(name: str) -> str:
    """A name as a flag."""
    return f"--{name.replace('_', '-')}"


def raise_input_error(message: str) -> NoReturn:
    """Raises: InputError, with an argparse message."""
    message = re.sub(r"--\w+/--", "--", message)  # of both spellings of a flag, the one with hyphens
    raise InputError(f"{message[0].upper()}{message[1:].rstrip('.')}. See --help.")


def unknown_flag(word: str, known: Iterable[str], renamed: Mapping[str, str] | None = None) -> InputError:
    """The error for an unknown word of the command line; it suggests the nearest flags, spelled with hyphens.

    Args:
        word: the unknown word.
        known: the flags of the program.
        renamed: for flags of other programs or versions, a sentence naming the replacement.
    """
    if not word.startswith("-"):
        return InputError(f"Unexpected argument {word!r}; flags begin with --. See --help.")
    if advice := (renamed or {}).get(word.lstrip("-").replace("-", "_")):
        return InputError(f"Unknown flag {word}. {advice}")
    near = nearest(word, {name.replace("_", "-") for name in known})
    hint = f"Did you mean {' or '.join(near)}?" if near else "See --help."
    return InputError(f"Unknown flag {word}. {hint}")


def nearest(word: str, known: Iterable[str], most: int = 2) -> list[str]:
    """The flags that ``word`` may be a misspelling of, by letters and by the words in them.

    Letters alone mislead: --early-stopping-patience has most of those of --learning-rate.
    """
    scores = {name: _likeness(word, name) for name in sorted(known)}
    return sorted((name for name in scores if scores[name] >= 0.6), key=lambda name: -scores[name])[:most]


def _likeness(one: str, other: str) -> float:
    """Similarity of two flags, from 0 to 1."""
    ones, others = (re.findall(r"[^-_]+", name.lower()) for name in (one, other))
    whole = _ratio("".join(ones), "".join(others))
    if whole >= 0.85:
        return whole
    alike = [max((_word_likeness(word, part) for part in others), default=0) for word in ones]
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


def api_key(variable: str) -> str:
    """The key in an environment variable.

    Raises:
        InputError: if the variable is missing or empty. The word is shown only if it is clearly a name: it may be the
            key itself.
    """
    key = os.environ.get(variable, "")
    if key:
        remember(key)
        return key
    is_name = re.fullmatch(r"[A-Z]+(_[A-Z]+)+", variable) is not None and is_secret_name(variable)
    if is_name:
        raise InputError(
            f"--api-key-env: the environment variable {variable}, which should hold the servers' key, is not set. "
            f"Run: export {variable}=…"
        )
    remember(variable)
    near = difflib.get_close_matches(variable, filter(is_secret_name, os.environ), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise InputError(
        "--api-key-env takes the name of the environment variable that holds the servers' key, such as VLLM_API_KEY. "
        f"None is set by the given name, which is not shown: it may be a key.{hint}"
    )
