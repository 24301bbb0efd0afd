"""Command lines whose every complaint is one line, with the nearest right flag."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NoReturn

from monolora.errors import InputError


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
