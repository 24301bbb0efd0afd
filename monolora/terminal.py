"""The terminal, for text of others: names of models, data and columns are shown as they are, and obeyed never."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from monolora.errors import printable

_T = TypeVar("_T")


class Terminal(Console):
    """rich's console, but ``[/b]`` and ``:smile:`` are no markup, and control characters are left out.

    Args:
        stderr: write there; stdout is for results.
        options: for :class:`rich.console.Console`.
    """

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, **options)

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


def say(text: str) -> None:
    """Print a line with names of others in it, on stdout."""
    print(printable(text), flush=True)
