"""The terminal, for text of others: names of models, data and columns are shown as they are, never as commands."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from monolora.errors import printable

_T = TypeVar("_T")


class Terminal(Console):
    """rich's console, but ``[/b]`` and ``:smile:`` are no markup, and control characters are left out.

    In a file or a pipe, a line has 120 characters unless ``COLUMNS`` says otherwise; rich's own 80 cut tables.

    Args:
        stderr: write there; stdout is for results.
        options: for :class:`rich.console.Console`.
    """

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, **options)
        if not (self.file.isatty() or "width" in options or "COLUMNS" in os.environ):
            self.width = 120

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As :meth:`rich.console.Console.render`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


STDERR = Terminal(stderr=True)


def track(items: Sequence[_T], description: str, *, disable: bool = False, transient: bool = False) -> Iterable[_T]:
    """As :func:`rich.progress.track`, on stderr; the description is no markup."""
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=STDERR, disable=disable, transient=transient) as progress:
        yield from progress.track(items, total=len(items), description=description)


class _Unfailing(io.TextIOBase):
    """Writes to another stream what that takes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


@contextmanager
def unfailing_output() -> Iterator[None]:
    """Work continues where stdout or stderr takes nothing more (a full disk, a reader that left).

    The last print, after it, will raise.
    """
    with redirect_stdout(_Unfailing(sys.stdout)), redirect_stderr(_Unfailing(sys.stderr)):
        yield


def say(text: str) -> None:
    """Print a line with names of others in it, on stdout."""
    print(printable(text), flush=True)


def suggest(*words: str) -> None:
    """Print the command that is most useful after this one, as a program's last line."""
    say(f"Next: {shlex.join(words)}")


def report_existing(title: str, existing: int, total: int) -> None:
    """Report how many results exist from an earlier call, if any."""
    if existing:
        STDERR.print(f"{title}: {existing:,} of {total:,} exist already.")


@contextmanager
def tracked(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show how many of ``total`` steps are done; the function that it gives is called for each."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=STDERR) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
