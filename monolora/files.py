"""Files: read with errors that name the fix, written whole or not at all; and whether code beside them may run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monolora.errors import InputError, RunError, SaveError, in_one_line, is_disk_trouble
from monolora.locks import locked
from monolora.redaction import redact_content

if TYPE_CHECKING:
    import torch
    from pydantic import TypeAdapter


# Reading: text and JSON, with errors in one line that names file, position and fix.


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
    """The content of a JSON file, as ``json.load`` returns it.

    Args:
        path: the file.
        fix: a sentence on what to do when it is unusable.
        kind: its type, such as a ``TypedDict``; other keys are allowed.

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
    """Why ``value`` is not of type ``kind``, as a sentence that names the key; empty if it is.

    Nothing is converted: "5" and true are not whole numbers. A whole number is a number.
    """
    from pydantic import ValidationError  # help and wrong flags do not need it

    try:
        _validator(kind).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        message = first["msg"][0].lower() + first["msg"][1:]
        received = "" if first["type"] == "missing" else f", got {_short(first['input'])}"
        return f"{f'{key}: ' if key else ''}{message}{received}."
    return ""


@cache  # making one takes longer than its use
def _validator(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _short(value: Any) -> str:
    """A mapping or list, which may be huge, by its kind."""
    if isinstance(value, (Mapping, list, tuple)):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _reason(error: Exception) -> str:
    return f"{error.strerror}." if isinstance(error, OSError) and error.strerror else in_one_line(error)


# Writing: files and folders are written aside and renamed, so that a killed program leaves them whole or not at all.
# A folder that is a program's result, and may replace an earlier one, is :class:`monolora.runs.OutputFolder`'s.

RETRY = "Free space, then give the same command again."


@contextmanager
def saving(folder: object, fix: str = RETRY) -> Iterator[None]:
    """A block that writes into ``folder``.

    Args:
        folder: or file, for the message.
        fix: a sentence on what to do when writing fails.

    Raises:
        SaveError: if writing fails.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        if not is_disk_trouble(error):
            raise
        raise SaveError.of(folder, error, fix) from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file; NaN and infinity become null, secrets ``***``.

    Raises:
        OSError: if the disk does not take it.
    """
    strict = json.loads(json.dumps(value), parse_constant=lambda name: None)
    text = redact_content(json.dumps(strict, indent=2)) + "\n"
    _replace(path, path.with_name(f".{path.name}.part"), lambda aside: aside.write_text(text))  # no *.json meanwhile


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8. Half a surrogate pair, as a cut answer may hold, becomes a question mark.

    Raises:
        OSError: if the disk does not take it.
    """
    write_file(path, lambda aside: aside.write_text(text, encoding="utf-8", errors="replace", newline="\n"))


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file.

    Raises:
        OSError, SafetensorError: if the disk does not take it.
    """
    from safetensors.torch import save_file

    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_file(path, lambda aside: save_file(contiguous, aside))


def write_file(path: Path, write_to: Callable[[Path], object]) -> None:
    """Write a file of any kind.

    Args:
        path: of the file.
        write_to: writes it to a path.

    Raises:
        OSError: if writing fails; other errors of ``write_to``.
    """
    _replace(path, path.with_name(f".part.{path.name}"), write_to)  # the suffix stays: some writers add their own


def _replace(path: Path, aside: Path, write_to: Callable[[Path], object]) -> None:
    try:
        write_to(aside)
        follow_umask(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def filled_once(path: Path, is_whole: Callable[[Path], bool] = Path.is_dir) -> Iterator[Path | None]:
    """A folder aside to fill, which then becomes ``path``; for caches that several processes share.

    Args:
        path: of the folder.
        is_whole: whether what is there can be used; else it is replaced.

    Yields:
        The folder to fill; None where another process has filled it before.

    Raises:
        InputError, OSError: if it cannot be made.
    """
    with locked(path, waits=True) as lock:
        if is_whole(path):
            yield None
            return
        with lock.aside("part") as aside:
            yield aside
            follow_umask(aside)
            shutil.rmtree(path, ignore_errors=True)
            aside.rename(path)


def follow_umask(path: Path) -> None:
    """Give a new file, or a new folder and all in it, the modes that the umask asks for.

    The safetensors library writes into a temporary file, which only its owner may read, and renames it.
    """
    umask = os.umask(0o077)  # the only way to read it; files that other threads create meanwhile are private
    os.umask(umask)
    for entry in (path, *(path.rglob("*") if path.is_dir() else ())):
        if not entry.is_symlink():
            entry.chmod((0o777 if entry.is_dir() else 0o666) & ~umask)


# Trust: Python code in model folders (`auto_map` in their configs) runs only with `--trust-remote-code`.

TRUST_HELP = "run the Python code that a model's folder brings (auto_map); read it first"
_IS_TRUSTED = ContextVar("trust_remote_code", default=False)


@contextmanager
def code_trusted(flag: bool) -> Iterator[None]:
    """Let models that the block loads run the code of their folders, if ``flag`` is true.

    Otherwise transformers' own class is used, and a folder without one is refused.
    """
    token = _IS_TRUSTED.set(flag)
    try:
        yield
    finally:
        _IS_TRUSTED.reset(token)


def trusts_code() -> bool:
    """The value of ``trust_remote_code`` for every loader. Left at None, transformers would ask y/N."""
    return _IS_TRUSTED.get()
