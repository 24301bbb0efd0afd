"""Locks on folders and files: one process at a time writes, and a kill leaves nothing that blocks the next.

A lock is a file beside the folder, ``.NAME.lock``, which the kernel releases when its process dies; the file is removed
when the lock is released.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any, ClassVar

from monolora.errors import InputError

EARLIER = "{}-earlier"  # the replaced folder, if something was put into it meanwhile
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(path: str | Path, flag: str = "", waits: bool = False) -> Iterator[Lock]:
    """Only this process writes to a folder, or to a file, until the block ends.

    The lock is a file beside it, which outlives renames; in the folder if its parent is not writable. On a file system
    without locks there is a warning instead.

    Args:
        path: of the folder or file, which may be absent.
        flag: that it was given with, for messages.
        waits: whether to wait for another process.

    Raises:
        InputError: if another process has the lock, or the folder is not writable.
    """
    named = f"{flag} {path}".strip()
    real = Path(os.path.realpath(path))  # resolve() fails on links in a circle
    if not real.name:
        raise InputError(f"{named} is the root of the file system. Take another folder.")
    with no_empty_folder(real.parent):
        try:
            lock = Lock.acquired(real, named, waits)
        except OSError as error:
            raise InputError(f"{named} cannot be made: {error.strerror}. Take another folder.") from error
        try:
            yield lock
        finally:
            lock.release()


@contextmanager
def no_empty_folder(folder: Path) -> Iterator[None]:
    """Remove ``folder`` and its parents at the end, as far as the block created them and left them empty.

    Trainers create their output folder before the data can be checked.
    """
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in absent:
            with suppress(OSError):
                path.rmdir()


class Lock:
    """A held lock file and the temporary folders that it lists.

    After a kill the file stays; the next holder removes these folders and restores what was moved.
    """

    _open: ClassVar[set[int]] = set()

    def __init__(self, real: Path, file: Path, descriptor: int | None) -> None:
        self._real = real
        self._file = file
        self._descriptor = descriptor
        self._process = os.getpid()
        self.inside = file.name if file.parent == real else None
        self._aside: dict[str, str] = {}

    @classmethod
    def acquired(cls, real: Path, named: str, waits: bool) -> Lock:
        """The lock on a folder or file.

        Args:
            real: its path, resolved.
            named: its name in messages.
            waits: whether to wait for another process.

        Raises:
            InputError: if another process has the lock.
            OSError: if the lock file cannot be made.
        """
        beside = real.with_name(f".{real.name}.lock")
        inside = real.is_dir() and not os.access(real.parent, os.W_OK | os.X_OK)
        file = real / ".lock" if inside else beside
        while True:
            real.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:  # another process has removed the empty parent
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            except BlockingIOError as error:
                holder = _holder(_content(descriptor))
                os.close(descriptor)
                fix = "Wait for it, end it, or take another folder."
                raise InputError(f"{named} is in use by {holder}. {fix}") from error
            except OSError as error:
                if _content(descriptor) == {}:
                    file.unlink(missing_ok=True)
                os.close(descriptor)
                if error.errno not in _NO_LOCKS:
                    raise
                known = f"{file} cannot be locked ({error.strerror})"
                warnings.warn(f"{known}: a second run into {real} would not be refused.", stacklevel=1)
                return cls(real, file, None)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), file.stat()):
                    break
            os.close(descriptor)  # its holder has removed it meanwhile
        earlier = _content(descriptor)
        if earlier is None:
            os.close(descriptor)
            raise InputError(f"{file} is in the way: it is no lock file of monolora. Move it away.")
        cls._open.add(descriptor)
        lock = cls(real, file, descriptor)
        try:
            lock._tidy(earlier.get("aside", {}))
            lock._write()
        except BaseException:
            lock.release()
            raise
        return lock

    @contextmanager
    def aside(self, what: str) -> Iterator[Path]:
        """A new, empty folder beside the locked one; removed at the end, unless it was renamed.

        Args:
            what: ``part`` for new content, ``old`` for replaced content, which is restored if the block fails before
                something else is in its place.

        Raises:
            InputError: if it cannot be made.
        """
        folder = self._real.with_name(f"{self._prefix}{secrets.token_hex(4)}.{what}")
        self._aside[folder.name] = what
        self._write()
        try:
            folder.mkdir()
        except OSError as error:
            raise InputError(f"Cannot write to {folder.parent}: {error.strerror}. Take another folder.") from error
        try:
            yield folder
        finally:
            self._tidy({folder.name: what})
            del self._aside[folder.name]
            with suppress(OSError):  # of a full disk: the block's own error counts, and the name is harmless
                self._write()

    def release(self) -> None:
        """Remove the lock file and unlock it."""
        if self._descriptor is None or os.getpid() != self._process:
            return
        self._file.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._open.discard(self._descriptor)

    @property
    def _prefix(self) -> str:
        return f".{self._real.name}.aside-"

    def _write(self) -> None:
        if self._descriptor is None:
            return
        content = {"pid": self._process, "host": socket.gethostname(), "aside": self._aside}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(content).encode(), 0)

    def _tidy(self, aside: Mapping[str, str]) -> None:
        for name, what in aside.items():
            if not re.fullmatch(rf"{re.escape(self._prefix)}[0-9a-f]{{8}}\.{what}", name):
                continue  # not a name of this class
            folder = self._real.with_name(name)
            if what == "old" and folder.is_dir() and any(folder.iterdir()):
                renamed(folder, EARLIER.format(self._real) if self._real.exists() else str(self._real))
            shutil.rmtree(folder, ignore_errors=True)


def _close_in_child() -> None:
    """A forked worker that outlives this process must not hold its locks."""
    for descriptor in Lock._open:
        os.close(descriptor)
    Lock._open.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _content(descriptor: int) -> dict[str, Any] | None:
    """The content of a lock file; None for any other file."""
    text = os.pread(descriptor, 1 << 16, 0)
    if not text:
        return {}
    try:
        content = json.loads(text)
    except ValueError:
        return None
    is_ours = isinstance(content, dict) and {"pid", "host"} <= content.keys()
    return content if is_ours and isinstance(content.get("aside", {}), dict) else None


def _holder(content: Mapping[str, Any] | None) -> str:
    if not content:
        return "another process"
    here = content["host"] == socket.gethostname()
    return f"process {content['pid']}" + ("" if here else f" on {content['host']}")


def renamed(folder: Path, path: str) -> Path:
    """Rename a folder that must not be lost, with a number appended if the path is taken."""
    paths = chain([path], (f"{path}-{number}" for number in count(2)))
    return folder.rename(next(free for free in paths if not os.path.lexists(free)))
