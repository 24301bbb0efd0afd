"""A progress bar on stderr; stdout is for results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from monolora.terminal import STDERR


def kept(what: str, there: int, total: int) -> None:
    """Say how much is there from an earlier call, if anything is."""
    if there:
        STDERR.print(f"{what}: {there:,} of {total:,} are there already.")


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
