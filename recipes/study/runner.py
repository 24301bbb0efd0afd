"""Doing what is not done yet, cell by cell, each in a process of its own; when killed, the next call goes on."""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NotRequired, cast

from typing_extensions import TypedDict

from monolora import cli
from monolora.errors import InputError, RunError, SaveError
from monolora.eval.process import results_of
from monolora.eval.run import KIND as EVALUATION
from monolora.files import read_json
from monolora.hub import local_path
from monolora.provenance import fingerprint_files
from monolora.recipes.judge import KIND as JUDGE
from monolora.recipes.study.plan import Cell
from monolora.run_record import SFT
from monolora.runs import claim, write_json
from monolora.terminal import STDERR

_KINDS = {"sft": SFT, "judge": JUDGE, "eval": EVALUATION}
DIVERGED = "diverged"  # of a training, in its record
_SAYS_DIVERGED = "error: Training diverged"


class _Record(TypedDict):
    """Of a cell."""

    command: str
    status: str
    inputs: NotRequired[dict[str, str]]


class _DivergedError(RunError):
    """A training whose program said that it diverged."""


class Runner:
    """Runs the cells of a study, and knows which are done.

    A cell is done if its command was the very same, on the same weights, and its folder still has what it made.

    Args:
        folder: of the study.
        total: how many cells there are, for what is said.
        jobs: how many cells are done at a time where they do not wait for one another.
    """

    def __init__(self, folder: Path, total: int, jobs: int = 1) -> None:
        self._folder = folder
        self._total = total
        self._jobs = jobs
        self._places = count(1)
        self.done_now: list[str] = []

    def run_all(self, cells: Iterable[Cell], may_diverge: bool = False) -> None:
        """Do cells that do not wait for one another; as :meth:`run`."""
        at_once((partial(self.run, cell, may_diverge) for cell in cells), self._jobs)

    def run(self, cell: Cell, may_diverge: bool = False) -> None:
        """Do a cell, unless it is done.

        Args:
            cell: it.
            may_diverge: whether a training that diverges is a result too, as where learning rates are tried.

        Raises:
            RunError: if its command fails, with the last lines of its log.
            SaveError: if the disk does not take the record.
        """
        where = f"[{next(self._places)}/{self._total}] {cell.name}"
        if self.is_done(cell):
            _say(f"{where}: done before")
            return
        _say(f"{where} …")
        began = time.monotonic()
        going_on = self._going_on(cell)
        self._write(cell, "begun", {})
        try:
            self._command([*cell.words, *going_on], cell)
        except _DivergedError:
            if not may_diverge:
                raise
            self._write(cell, DIVERGED, {})
            _say(f"{where}: diverged")
            return
        seconds = round(time.monotonic() - began, 1)
        self._write(cell, "done", {"seconds": seconds, "inputs": _inputs(cell)})
        self.done_now.append(cell.name)
        _say(f"{where}: {seconds:.0f} s")

    def is_done(self, cell: Cell) -> bool:
        """Whether there is nothing to do."""
        record = self._read(cell)
        if record.get("status") == DIVERGED:
            return bool(record["command"] == cell.command) and cell.folder.is_dir()
        return (
            record.get("status") == "done"
            and record["command"] == cell.command
            and (cell.folder / "run.json").is_file()
            and record["inputs"] == _inputs(cell)
        )

    def _going_on(self, cell: Cell) -> list[str]:
        """The flag with which a training goes on. What a command cannot go on with is removed, before it is recorded.

        An evaluation goes on by itself, with other adapters and judges too; with other settings, what is there is no
        use to it.
        """
        if not cell.folder.is_dir():
            return []
        begun = self._read(cell)
        if cell.words[0] == "eval" and _settings(begun.get("command", "")) == _settings(cell.command):
            return []
        same = begun.get("status") == "begun" and begun["command"] == cell.command
        if same and cell.words[0] == "sft" and any(cell.folder.glob("checkpoint-*")):
            return ["--resume-from-checkpoint"]
        with claim(cell.folder, _KINDS[cell.words[0]]) as folder:
            folder.check(overwrite=True, is_known=bool(begun))
            read = (word for word in cell.words[1:] if Path(word) != cell.folder)
            folder.check_apart((*cell.inputs, *filter(None, map(local_path, read))))
            folder.clear()
            with suppress(OSError):  # a lock file may be in it
                cell.folder.rmdir()
        return []

    def _command(self, words: Sequence[str], cell: Cell) -> None:
        log = self._folder / "logs" / f"{_slug(cell.name)}.log"
        earlier = log.stat().st_size if log.is_file() else 0
        (status,) = [row["status"] for row in results_of(f"{__name__}:ended", {"words": list(words)}, log)]
        if status != 0:
            lines = log.read_bytes()[earlier:].decode(errors="replace").splitlines()
            lines = [line for line in lines if line.strip()]
            last = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
            kind = _DivergedError if last.startswith(_SAYS_DIVERGED) else RunError
            raise kind(f"{cell.name} ended with status {status}. {last} See {log}. Its command: {cell.command}")

    def _record(self, cell: Cell) -> Path:
        return self._folder / "cells" / f"{_slug(cell.name)}.json"

    def _read(self, cell: Cell) -> dict[str, Any]:
        try:
            return cast(dict[str, Any], read_json(self._record(cell), "", _Record))
        except InputError:  # never begun, or its record is damaged: it is done again
            return {}

    def _write(self, cell: Cell, status: str, more: dict[str, Any]) -> None:
        path = self._record(cell)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"command": cell.command, "status": status, **more})
        except OSError as error:
            raise SaveError.of(path, error, "Free space, then give the same command again.") from error


def ended(job: Mapping[str, Any]) -> Iterator[dict[str, int]]:
    """How a command ended; run in a process of its own, which does not outlive this one."""
    yield {"status": cli.main(list(job["words"]))}


def _settings(command: str) -> list[str]:
    """A command's words but for the models that it is given, and the judges."""
    named = ("--adapter", "--checkpoints", "--judges")
    return [word for before, word in pairwise(("", *shlex.split(command))) if before not in named and word not in named]


def _inputs(cell: Cell) -> dict[str, str]:
    return {str(path): fingerprint_files(path) for path in cell.inputs}


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def _say(text: str) -> None:
    STDERR.print(text)


def at_once(calls: Iterable[Callable[[], None]], jobs: int) -> None:
    """Make all calls, up to ``jobs`` at a time; with one, here and in order.

    The threads are daemons: where this raises, no further call is made, and those under way end with the program.

    Args:
        calls: in the order in which they are begun.
        jobs: how many at a time; 1 or more.

    Raises:
        Exception: what the first call that failed raised.
    """
    if jobs == 1:
        for call in calls:
            call()
        return
    waiting, taking, stopped = iter(calls), threading.Lock(), threading.Event()
    ended: SimpleQueue[Exception | None] = SimpleQueue()

    def work() -> None:
        try:
            while not stopped.is_set():
                with taking:
                    call = next(waiting, None)
                if call is None:
                    break
                call()
        except Exception as error:
            ended.put(error)
        else:
            ended.put(None)

    for _ in range(jobs):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(jobs):
            error = ended.get()
            if error is not None:
                raise error
    finally:
        stopped.set()
