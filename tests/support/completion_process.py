"""A :class:`~tests.support.completion_server.CompletionServer` in a process of its own, which can be killed.

It answers so many requests and holds those that come then, so that a test knows what was under way.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from tests.support.completion_server import CompletionServer, Reply, completion
from tests.support.processes import kill

_ROOT = Path(__file__).parents[2]


class Received(NamedTuple):
    """A request that a server received.

    Attributes:
        model: the served name.
        prompt: its token ids.
        held: whether it came when the server answered no more.
    """

    model: str
    prompt: tuple[int, ...]
    held: bool


class CompletionProcess:
    """A server's process; use it in a ``with`` statement, which kills it.

    Args:
        folder: for its files; a new one.
        answers: how many requests it answers before :meth:`release`.
        models: what ``/v1/models`` lists.
    """

    def __init__(self, folder: Path, answers: int, models: Sequence[str]) -> None:
        folder.mkdir()
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder), str(answers), *models],
            stdout=subprocess.PIPE, text=True, cwd=_ROOT,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def __enter__(self) -> CompletionProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def kill(self) -> None:
        """As ``kill -9`` does; nothing where it is dead."""
        if self._process.poll() is None:
            kill(self._process.pid)
            self._process.wait()

    def release(self) -> None:
        """Let it answer all that it holds, and all that comes."""
        (self._folder / "released").touch()

    def received(self) -> list[Received]:
        """Its requests, in the order in which they came."""
        lines = (self._folder / "received").read_text().splitlines()
        return [Received(model, tuple(prompt), held) for model, prompt, held in map(json.loads, lines)]


def main(folder: Path, answers: int, models: Sequence[str]) -> None:
    """Serve until killed."""
    lock, count = threading.Lock(), 0
    released = (folder / "released").exists

    def answer(request: dict[str, Any], before: int) -> Reply:
        nonlocal count
        with lock, received.open("a") as file:
            count += 1
            held = count > answers and not released()
            file.write(json.dumps([request["model"], request["prompt"], held]) + "\n")
        return completion(request)._replace(until=released if held else lambda: True)

    received = folder / "received"
    received.touch()
    with CompletionServer(answer, models=models) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
