"""Files and folders that are on the disk whole or not at all, whenever the program is killed.

Both are written aside and renamed. A folder that is a program's result, and may
replace an earlier one, is :class:`monolora.runs.OutputFolder`'s.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monolora.errors import RunError, SaveError, is_disk_trouble
from monolora.locks import locked
from monolora.redaction import redact_content

if TYPE_CHECKING:
    import torch

RETRY = "Free space, then give the same command again."


@contextmanager
def saving(folder: object, fix: str = RETRY) -> Iterator[None]:
    """A block that writes into ``folder``.

    Args:
        folder: or file, for the message.
        fix: what to do where the disk does not take it, a sentence.

    Raises:
        SaveError: if the disk does not take what the block writes.
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
        write_to: writes it to the path that it is given.

    Raises:
        OSError: if the disk does not take it; other errors as ``write_to`` raises them.
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
    umask = os.umask(0o077)  # there is no other way to ask; what another thread makes now is private, not public
    os.umask(umask)
    for each in (path, *(path.rglob("*") if path.is_dir() else ())):
        if not each.is_symlink():
            each.chmod((0o777 if each.is_dir() else 0o666) & ~umask)
