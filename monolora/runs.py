"""Result folders: which may be written or replaced, by one process at a time, whole or not at all.

Every program that fills a folder claims it first (:func:`claim`). A claim is a lock beside the folder, ``.NAME.lock``,
which the kernel releases when the process dies; the file is removed when the claim ends. A claimed folder is checked
(:meth:`OutputFolder.check`) before any work: an earlier result is replaced only if its record says that it is one of
the same program, if it holds nothing but files that this program writes, and if nothing that is needed lies in it.
"""

from __future__ import annotations

import json
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from monolora.errors import InputError, RunError, in_one_line
from monolora.files import follow_umask
from monolora.locks import EARLIER, Lock, locked, no_empty_folder, renamed

RUN = "run.json"
# What save_pretrained of models, adapters and tokenizers writes, as regular expressions of paths.
MODEL_FILES = (
    r"(config|generation_config|adapter_config)\.json",
    r"((adapter_)?model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)",
    r"((adapter_)?model\.safetensors|pytorch_model\.bin)\.index\.json",
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|normalizer|tekken|(\w+_)?vocab|vocab-(src|tgt))\.json",
    r"(tokenizer|spiece|spm|spm_char|sentencepiece|sentencepiece\.bpe)\.model|(source|target)\.spm|\w+\.tiktoken",
    r"vocab\.txt|vocab\.bpe|merges\.txt|bpe\.codes",
    r"chat_template\.(jinja|json)|additional_chat_templates/[^/]+\.jinja",
    r"(pre|video_pre)?processor_config\.json",
    r"README\.md",
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The output folder of a program: how it is recognised, and which files belong to it.

    Attributes:
        name: such a result, in words, as "merge".
        keys: of its record, those that no other program writes; a dot leads into a nested object.
        files: regular expressions of the paths of all that it writes, relative to the folder; with a slash at the end,
            of folders that may be empty.
        record: the file of the record.
        is_unfinished: whether a folder, by its record and its files' paths, holds nothing worth keeping: it is replaced
            without being asked for.
        is_whole: whether the folder is written aside and renamed.
        continued: what else to do where one exists, for a message.
    """

    name: str
    keys: tuple[str, ...]
    files: tuple[str, ...]
    record: str = RUN
    is_unfinished: Callable[[Mapping[str, Any], Iterable[str]], bool] = lambda record, paths: False
    is_whole: bool = True
    continued: str = ""

    def recorded(self, folder: Path) -> Any | None:
        """The record in ``folder``, or None where there is none of this kind."""
        for name in (self.record, self._of_removed):
            try:
                record = json.loads((folder / name).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if all(_has(record, key.split(".")) for key in self.keys):
                return record
        return None

    def is_begun(self, folder: Path, flag: str = "") -> bool:
        """Whether a folder has a record of any content, for programs that resume.

        Args:
            folder: may be absent; locks and partial files of a killed program do not count.
            flag: that it was given with, for messages.

        Raises:
            InputError: if it holds something else.
        """
        if (folder / self.record).exists():
            return True
        if folder.exists() and not (folder.is_dir() and all(map(_is_leftover, folder.iterdir()))):
            raise InputError(f"{flag} {folder}".lstrip() + f" exists and is no {self.name}. Take another folder.")
        return False

    @property
    def _of_removed(self) -> str:
        """The name of the record while a folder is emptied, so that after a kill the rest is not taken for a result."""
        return f".removed.{self.record}"

    def foreign(self, paths: Iterable[str]) -> list[str]:
        """The paths that no such program writes."""
        own = re.compile("|".join((re.escape(self.record), re.escape(self._of_removed), *self.files)))
        return sorted(path for path in paths if own.fullmatch(path) is None)


def check_own(files: Iterable[Path], is_own: bool, kind: str) -> None:
    """Check that a program may write its files into a folder that may hold others too.

    Args:
        files: those that it would replace.
        is_own: whether a record says that they are its own.
        kind: of the result they would belong to, for the message.

    Raises:
        InputError: naming the first file that exists and is not.
    """
    for path in files:
        if path.exists() and not is_own:
            raise InputError(f"{path} exists and does not belong to a {kind}. Take another folder.")


def _is_leftover(path: Path) -> bool:
    """Whether a file is a lock, or what a killed program left of a file that it was writing."""
    return path.name.endswith(".lock") or ".part" in path.name


def _has(record: Any, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(record, dict) or key not in record:
            return False
        record = record[key]
    return True


class _File(NamedTuple):
    """Identifies a file and its content, so that a change is noticed."""

    inode: int
    size: int
    changed: int
    is_link: bool

    @classmethod
    def of(cls, about: os.stat_result) -> _File:
        return cls(about.st_ino, about.st_size, about.st_mtime_ns, stat.S_ISLNK(about.st_mode))


class OutputFolder:
    """A folder that this process alone may fill; :func:`claim` gives one.

    Args:
        path: as the user gave it.
        kind: of what is to be in it.
        flag: that it was given with, for messages.
        lock: on it.
    """

    def __init__(self, path: Path, kind: Kind, flag: str, lock: Lock) -> None:
        self.path = path
        self._kind = kind
        self._named = f"{flag} {path}".strip()
        self._lock = lock
        self._replaced: dict[str, _File] | None = None

    def check(self, overwrite: bool, is_known: bool = False) -> None:
        """Check that the folder is absent, empty, or holds a result that may be replaced.

        Args:
            overwrite: whether an earlier result may be replaced.
            is_known: whether the content is known to be such a result even without a record, as in a study, whose own
                folder may lie behind a symlink.

        Raises:
            InputError: naming what is in the way.
        """
        if not os.path.lexists(self.path):
            return
        if self._kind.is_whole:
            self._check_location()
            self._check_renamable()
        if not self.path.is_dir():
            raise InputError(f"{self._named} exists and is no {self._kind.name}. Take another folder.")
        files = self._listed()
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise InputError(f"{self._named} cannot be written to. Take another folder.")
        if not files:
            return
        record = self._kind.recorded(self.path)
        if record is None and not is_known:
            raise InputError(f"{self._named} exists and is no {self._kind.name}. Take another folder.")
        if not overwrite and not self._kind.is_unfinished(record or {}, files):
            ways = f"Take another folder, {self._kind.continued}or replace it with --overwrite."
            raise InputError(f"{self._named} holds another {self._kind.name}. {ways}")
        self._check_location()
        self._check_link(also_parents=not is_known)
        foreign = self._kind.foreign(files) or sorted(path for path, file in files.items() if file.is_link)
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise InputError(
                f"{self._named} cannot be replaced: {foreign[0]}{more} in it is not of the earlier {self._kind.name}. "
                "Move it away, or take another folder."
            )
        self._replaced = files

    def check_apart(self, inputs: Iterable[str | Path]) -> None:
        """Check that the result does not replace its own inputs.

        Args:
            inputs: files and folders; missing ones are ignored.

        Raises:
            InputError: naming one that is the folder, lies in it, or is a link into it.
        """
        if not self.path.exists():
            return
        for path in map(Path, inputs):
            if any(_holds(self.path, target) for target in _reached(path)):
                raise InputError(
                    f"{self._named} holds {path}, which the {self._kind.name} is made from. Take another folder."
                )

    def clear(self) -> None:
        """Remove the earlier result, if :meth:`check` saw one.

        Raises:
            InputError: if anything in it has changed since; nothing is removed then.
        """
        if self._replaced is None:
            return
        if self._listed() != self._replaced:
            raise InputError(f"{self._named} has changed since this program began. Look into it, and start again.")
        files, record, removed = self._replaced, self._kind.record, self._kind._of_removed
        if record in files:
            (self.path / record).replace(self.path / removed)
            files[removed] = files.pop(record)
        _remove(self.path, files, last=removed)
        self._replaced = None

    @contextmanager
    def whole(self) -> Iterator[Path]:
        """A new folder to write into; it replaces the output folder when the block ends.

        Raises:
            InputError: if no folder can be made there.
            RunError: if something was put into the output folder meanwhile; the result is kept beside it.
        """
        out = self.path.resolve()
        with self._lock.aside("part") as aside:
            yield aside
            follow_umask(aside)
            if self._replaced is None:
                self._fill(out, aside)
                return
            with self._lock.aside("old") as earlier:  # whatever happens now, one of the two is whole
                out.replace(earlier)
                aside.replace(out)
                if not _remove(earlier, self._replaced, last=self._kind.record):
                    backup = renamed(earlier, EARLIER.format(out))
                    warnings.warn(f"What was put into {out} meanwhile is in {backup}.", stacklevel=1)

    def _fill(self, out: Path, aside: Path) -> None:
        try:
            aside.replace(out)
        except OSError as error:
            if not out.exists():
                raise
            rescued = renamed(aside, f"{out}-new")
            raise RunError(f"{out} was filled meanwhile by something else. The result is in {rescued}.") from error

    def _listed(self) -> dict[str, _File]:
        try:
            return {path: file for path, file in _listing(self.path) if path != self._lock.inside}
        except OSError as error:
            raise InputError(f"{self._named} cannot be read: {in_one_line(error)} Take another folder.") from error

    def _check_location(self) -> None:
        """Raises: InputError, for folders that must never be replaced."""
        protected = {"the working directory": Path.cwd(), "the home folder": Path(os.path.expanduser("~"))}
        if mirror := os.environ.get("MONOLORA_DATA"):
            protected["MONOLORA_DATA"] = Path(mirror)
        for what, path in protected.items():
            if any(_holds(self.path, target) for target in _located(path)):
                raise InputError(f"{self._named} is {what}, or holds it. Take another folder.")

    def _check_renamable(self) -> None:
        """Raises: InputError, where the folder cannot be replaced by renaming."""
        if self._lock.inside or self.path.is_mount():
            raise InputError(f"{self._named} cannot be written aside and renamed. Take a folder in it.")

    def _check_link(self, also_parents: bool) -> None:
        """Raises: InputError, for a symlink: what is replaced must be at the path that was given."""
        absolute = self.path.absolute()
        paths = (absolute, *absolute.parents) if also_parents else (absolute,)
        link = next((path for path in paths if path.is_symlink()), None)
        if link is not None:
            raise InputError(
                f"{self._named} cannot be replaced: {link} is a symlink. Give the folder that is meant, "
                f"{self.path.resolve()}."
            )


@contextmanager
def claim(path: str | Path, kind: Kind, flag: str = "") -> Iterator[OutputFolder]:
    """An output folder that no other process may claim until the block ends; empty folders that it made are removed.

    Args:
        path: of the folder, which need not be there.
        kind: of what is to be in it.
        flag: that it was given with, for messages.

    Raises:
        InputError: if another process has it, or nothing can be written there.
    """
    with locked(path, flag) as lock, no_empty_folder(Path(path)):
        yield OutputFolder(Path(path), kind, flag, lock)


def _listing(folder: Path) -> Iterator[tuple[str, _File]]:
    """All files below a folder, and with a slash at the end all empty folders, by their relative paths."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            file = _File.of(entry.stat(follow_symlinks=False))
            if not entry.is_dir(follow_symlinks=False):
                yield entry.name, file
                continue
            below = dict(_listing(Path(entry)))
            yield from ((f"{entry.name}/{path}", file) for path, file in below.items())
            if not below:
                yield f"{entry.name}/", file


def _remove(folder: Path, files: Mapping[str, _File], last: str) -> bool:
    """Remove unchanged files of a folder, then its empty folders; whether nothing is left.

    Args:
        folder: where they are.
        files: to remove, by their relative paths.
        last: the file that is removed after all others, as it identifies the folder after a kill.
    """
    for path in sorted(files, key=lambda path: path == last):
        file = folder / path
        if not path.endswith("/") and os.path.lexists(file) and _File.of(file.lstat()) == files[path]:
            file.unlink()
    folders = {parent for path in files for parent in (folder / f"{path}x").relative_to(folder).parents}
    for parent in sorted(folders - {Path()}, key=lambda parent: len(parent.parts), reverse=True):
        with suppress(OSError):  # something else is in it
            (folder / parent).rmdir()
    return not any(folder.iterdir())


def _holds(folder: Path, path: Path) -> bool:
    """Whether ``path`` is the folder or lies in it, by inodes: one folder may have several names."""
    try:
        own = folder.stat()
    except OSError:
        return False
    for ancestor in (path, *path.parents):
        with suppress(OSError):
            if os.path.samestat(ancestor.stat(), own):
                return True
    return False


def _located(path: Path) -> Iterator[Path]:
    """The path with its parents resolved, and fully resolved."""
    yield Path(os.path.realpath(path.parent)) / path.name
    yield Path(os.path.realpath(path))


def _reached(path: Path) -> Iterator[Path]:
    """The path as :func:`_located`, and the targets of links in it; nothing if it does not exist."""
    if not os.path.lexists(path):
        return
    yield from _located(path)
    if path.is_dir():
        for parent, folders, files in os.walk(path):
            inside = (Path(parent, name) for name in folders + files)
            yield from (Path(os.path.realpath(link)) for link in inside if link.is_symlink())
