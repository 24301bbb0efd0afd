"""Text files and JSON, read so that an error is one line: the file, the place, the fix."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from monolora.errors import InputError, in_one_line


def read_text(path: str | Path, fix: str = "", *, flag: str = "") -> str:
    """The text in a file, in UTF-8; a byte order mark in front is no part of it.

    Args:
        path: the file.
        fix: what to do where it cannot be read, a sentence.
        flag: that names the file, for messages.

    Raises:
        InputError: if it cannot be read, or is in another encoding (naming the line).
    """
    where = f"{flag} {path}".lstrip()
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # the latter for a name with a null character
        raise InputError(f"Cannot read {where}: {_reason(error)} {fix}".rstrip()) from error
    return decoded(content, where, fix)


def decoded(content: bytes, where: str | Path, fix: str = "") -> str:
    """As :func:`read_text`, of what has been read from ``where``."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{where}, line {line}: the byte 0x{content[error.start]:02x} is not UTF-8. "
            + (fix or "Save the file as UTF-8 (iconv -f latin1 -t utf-8, if it is Latin-1).")
        ) from error


def read_json(path: str | Path, fix: str, kind: Any = dict[str, Any]) -> Any:
    """What a JSON file says, as ``json`` gives it.

    Args:
        path: the file.
        fix: what to do where it cannot be used, a sentence.
        kind: its type, such as a ``TypedDict``; keys that this does not name may be there too.

    Raises:
        InputError: if the file cannot be read, is no JSON (naming line and column), or is not of that type (naming
            the key).
    """
    text = read_text(path, fix)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {in_one_line(error)} {fix}".rstrip()) from error
    if problem := type_problem(value, kind):
        raise InputError(f"{path} is damaged: {problem} {fix}".rstrip())
    return value


def type_problem(value: Any, kind: Any) -> str:
    """What makes ``value`` none of type ``kind``, as a sentence that names the key; empty where nothing does.

    Nothing is converted: "5" and true are no whole numbers. A whole number is a number.
    """
    try:
        _validator(kind).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        said = first["msg"][0].lower() + first["msg"][1:]
        given = "" if first["type"] == "missing" else f", got {_short(first['input'])}"
        return f"{f'{key}: ' if key else ''}{said}{given}."
    return ""


_validator = cache(TypeAdapter)  # made once a type: that takes longer than its use


def _short(value: Any) -> str:
    """A mapping or list, which may be huge, by its kind."""
    if isinstance(value, (Mapping, list, tuple)):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _reason(error: Exception) -> str:
    return f"{error.strerror}." if isinstance(error, OSError) and error.strerror else in_one_line(error)
