"""The folder that a program writes: looked at first, written aside, and put in its place whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from monolora.errors import InputError
from monolora.recipes.record import no_empty_folder


def check_free(out: Path, *, record: str, what: str, overwrite: bool) -> None:
    """Check that a folder can be written: it is not there, is empty, or may be replaced.

    Args:
        out: the folder.
        record: the file by which an earlier result of the program is known.
        what: such a result, in words, as "merge".
        overwrite: whether it may be replaced.

    Raises:
        InputError: where something is in the way.
    """
    if Path.cwd().is_relative_to(out.resolve()):
        raise InputError(f"{out} is the working directory, or holds it. Take another folder.")
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / record).is_file()):
        raise InputError(f"{out} exists and is no {what}. Take another folder.")
    if any(out.iterdir()) and not overwrite:
        raise InputError(f"{out} holds another {what}. Take another folder, or replace it with --overwrite.")


def check_apart(out: Path, inputs: Iterable[str | Path], what: str) -> None:
    """Raises: InputError, where ``what`` would take the place of what it is made from."""
    for path in map(Path, inputs):
        if path.exists() and path.resolve().is_relative_to(out.resolve()):
            raise InputError(f"{out} holds {path}, which the {what} is made from. Take another folder.")


@contextmanager
def whole_or_nothing(out: Path) -> Iterator[Path]:
    """A folder aside to write into; it takes the place of ``out`` when all of it is written, and else is removed.

    Raises:
        InputError: if no folder can be made there.
    """
    out = out.resolve()
    aside, earlier = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.old")
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    with no_empty_folder(out.parent):
        try:
            aside.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"Cannot write to {out.parent}: {error.strerror}. Take another folder.") from error
        try:
            yield aside
            if out.exists():
                shutil.rmtree(earlier, ignore_errors=True)
                out.replace(earlier)  # whatever happens now, one of the two is whole
            aside.replace(out)
            shutil.rmtree(earlier, ignore_errors=True)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
