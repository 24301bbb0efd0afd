"""Settings as frozen dataclasses whose fields are flags; every complaint is one line, with the nearest right flag.

    @dataclass(frozen=True, kw_only=True)
    class Prune(Flags):
        adapter: str = setting(REQUIRED, "an adapter folder", positional=True)
        units: int = setting(8, "units that are taken out", type=int, at_least=1)

    settings = FlagParser("monolora prune", __doc__).parse_into(words, Prune)

A field says all that there is to say of its flag: the default, the help, the type, the range.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, NamedTuple, NoReturn, TypeVar

from monolora.errors import InputError

REQUIRED: Any = MISSING  # in the place of a setting's default


class Range(NamedTuple):
    """Bounds of a number; None for none. A number that is not finite is within none but the one without bounds."""

    at_least: float | None
    above: float | None
    at_most: float | None
    below: float | None

    def has(self, value: float) -> bool:
        """Whether ``value`` is within."""
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
        for each in fields(self):
            value = getattr(self, each.name)
            if "group" in each.metadata:
                value.check()
            else:
                _check_range(each, value)
                _check_items(each, value)


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
        items: for a list of words, those that it may have, each once.
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
    return field(default=default, metadata=metadata)


def group(kind: type[FlagsT]) -> FlagsT:
    """A field that holds settings of another class, whose flags stand beside the field's own class's."""
    grouped: FlagsT = field(default_factory=kind, metadata={"group": kind})
    return grouped


def settings_of(kind: type[Flags]) -> Iterator[Field[Any]]:
    """The fields of a class that are flags, those of its groups in their place."""
    for each in fields(kind):
        if "group" in each.metadata:
            yield from settings_of(each.metadata["group"])
        else:
            yield each


def _check_range(each: Field[Any], value: Any) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, (int, float)) and not each.metadata["range"].has(number):
            raise InputError(f"{flag_of(each)} must be {each.metadata['range']}, got {number}.")


def _check_items(each: Field[Any], value: Any) -> None:
    choices = each.metadata["items"]
    if choices and (not value or len(set(value)) < len(value) or not set(value) <= set(choices)):
        raise InputError(f"{flag_of(each)} takes {', '.join(choices)}, each once; got {', '.join(value) or 'nothing'}.")


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
        """Add a flag for each field made by :func:`setting`.

        Args:
            fields: of settings.
            given: values that flags with ``action="append"`` are appended to, by name.
        """
        for each in fields:
            options = dict(each.metadata["options"])
            if each.metadata["positional"]:
                self.add_argument(each.name, **options)
                continue
            if each.default is REQUIRED:
                options["required"] = True
            elif isinstance(each.default, bool):
                options["action"] = argparse.BooleanOptionalAction if each.default else "store_true"
            elif each.default not in ("", (), None):
                default = ",".join(map(str, each.default)) if isinstance(each.default, tuple) else each.default
                options["help"] += f" (default: {default})"
            if options.get("action") == "append":  # argparse appends to a list only
                options["default"] = list((given or {}).get(each.name, ()))
            self.add_argument(flag_of(each), dest=each.name, **options)

    def parse_into(self, words: Sequence[str], kind: type[FlagsT]) -> FlagsT:
        """The settings that ``words`` give, checked; the fields of ``kind`` become flags.

        Raises:
            InputError: as :meth:`parse`, and for values that cannot be.
        """
        self.add_settings(settings_of(kind))
        settings = _settings(kind, vars(self.parse(words)))
        settings.check()
        return settings

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
        flags, rest = self.parse_known_args(words)
        if rest:
            raise unknown_flag(rest[0].split("=")[0], self._option_string_actions)
        return flags


def _settings(kind: type[FlagsT], parsed: Mapping[str, Any]) -> FlagsT:
    values: dict[str, Any] = {}
    for each in fields(kind):
        if "group" in each.metadata:
            values[each.name] = _settings(each.metadata["group"], parsed)
        elif parsed[each.name] is not None:
            values[each.name] = frozen(parsed[each.name])
    return kind(**values)


def frozen(value: Any) -> Any:
    """With tuples for argparse's and YAML's lists."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value


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


def flag_of(each: Field[Any]) -> str:
    """What a field made by :func:`setting` is called on the command line."""
    if each.metadata["positional"]:
        return each.name
    return each.metadata["flag"] or spelled(each.name)


def spelled(name: str) -> str:
    """A name as a flag."""
    return f"--{name.replace('_', '-')}"


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
