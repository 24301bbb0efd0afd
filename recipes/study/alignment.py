"""Does MonoLoRA keep alignment, and gain on the task? The paper's table 2 on a real chat model, with error bars.

    python recipes/study/alignment.py --config recipes/study/smollm2.yaml
    python recipes/study/alignment.py --config recipes/study/smollm2.yaml --preset gpu --dry-run

Trains every adapter on every data set at several learning rates, selects the rate on held-out training examples, trains
the other seeds, evaluates base and adapters together, and writes OUT/report/report.md. Each cell runs in a worker
process; an interrupted study resumes with the same command, and repeats only missing cells.
"""

from __future__ import annotations

import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import chain, count, pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NotRequired, cast

from typing_extensions import TypedDict

from monolora import cli
from monolora.cli.flags import FlagParser
from monolora.errors import InputError, RunError, exit_status
from monolora.eval.run import KIND as EVALUATION
from monolora.files import read_json, saving, write_json
from monolora.hub import local_path
from monolora.locks import locked
from monolora.recipes.judge.program import KIND as JUDGE
from monolora.recipes.study import plan
from monolora.recipes.study.cost_estimate import dry_run
from monolora.recipes.study.plan import Cell, check_commands, selected_rates
from monolora.recipes.study.report import KIND, REPORT, check_records, keep_records, write_report
from monolora.recipes.study.settings import Call, Study, load
from monolora.run_record import SFT, fingerprint_files
from monolora.runs import Kind, claim
from monolora.terminal import STDERR, say, suggest
from monolora.workers import shared_cores, worker_rows

# A study resumes from its folder, and is never replaced.
STUDY = Kind(name="study", record="cells", keys=(), files=())
_KINDS = {"sft": SFT, "align": SFT, "judge": JUDGE, "eval": EVALUATION}
DIVERGED = "diverged"  # the status of a training in its record
_DIVERGED_MESSAGE = "error: Training diverged"  # in its log: divergence has no exit status of its own


class _Record(TypedDict):
    """The record of a cell, a file in ``OUT/cells``."""

    command: str
    status: str
    inputs: NotRequired[dict[str, str]]


class _DivergedError(RunError):
    """A training that reported that it diverged."""


class Runner:
    """Runs the cells of a study, and knows which are done.

    A cell is done if exactly its command was completed, on the same input weights, and its output still exists.

    Args:
        folder: of the study.
        total: number of cells, for progress messages.
        jobs: number of independent cells that run at the same time.

    Attributes:
        completed: names of the cells that this object has run.
    """

    def __init__(self, folder: Path, total: int, jobs: int = 1) -> None:
        self._folder = folder
        self._total = total
        self._jobs = jobs
        self._numbers = count(1)
        self.completed: list[str] = []

    def run_all(self, cells: Iterable[Cell], may_diverge: bool = False) -> None:
        """Run cells that do not depend on each other; see :meth:`run`. They share the CPU's cores evenly."""
        cells = list(cells)
        jobs = max(1, min(self._jobs, len(cells)))
        run_parallel((partial(self.run, cell, may_diverge, shared_cores(jobs)) for cell in cells), jobs)

    def run(self, cell: Cell, may_diverge: bool = False, environment: Mapping[str, str] | None = None) -> None:
        """Run a cell, unless it is done.

        Args:
            cell: the cell.
            may_diverge: whether divergence of a training is a result, as in a sweep of learning rates, not an error.
            environment: variables of its command, beside this process's.

        Raises:
            RunError: if its command fails, with the last line of its log.
            SaveError: if the record cannot be written.
        """
        label = f"[{next(self._numbers)}/{self._total}] {cell.name}"
        if self.is_done(cell):
            STDERR.print(f"{label}: already done")
            return
        STDERR.print(f"{label} …")
        started = time.monotonic()
        resume_flags = self._resume_flags(cell)
        self._write(cell, "begun", {})
        try:
            self._command([*cell.words, *resume_flags], cell, environment)
        except _DivergedError:
            if not may_diverge:
                raise
            self._write(cell, DIVERGED, {})
            STDERR.print(f"{label}: diverged")
            return
        seconds = round(time.monotonic() - started, 1)
        self._write(cell, "done", {"seconds": seconds, "inputs": _input_fingerprints(cell)})
        self.completed.append(cell.name)
        STDERR.print(f"{label}: {seconds:.0f} s")

    def is_done(self, cell: Cell) -> bool:
        """Whether a cell has nothing left to do."""
        record = self._read(cell)
        if record.get("status") == DIVERGED:
            return bool(record["command"] == cell.command) and cell.folder.is_dir()
        return (
            record.get("status") == "done"
            and record["command"] == cell.command
            and (cell.folder / "run.json").is_file()
            and record["inputs"] == _input_fingerprints(cell)
        )

    def _resume_flags(self, cell: Cell) -> list[str]:
        """The flag with which a training resumes, if it can. Output that a command cannot resume from is removed.

        It is removed before the new command is recorded: a study that is killed in between must not resume from the
        output of another command. An evaluation resumes by itself, also with other adapters and judges; with other
        settings its earlier responses are useless.
        """
        if not cell.folder.is_dir():
            return []
        record = self._read(cell)
        if cell.words[0] == "eval" and _fixed_words(record.get("command", "")) == _fixed_words(cell.command):
            return []
        is_interrupted = record.get("status") == "begun" and record["command"] == cell.command
        if is_interrupted and cell.words[0] in ("sft", "align") and any(cell.folder.glob("checkpoint-*")):
            return ["--resume-from-checkpoint"]
        with claim(cell.folder, _KINDS[cell.words[0]]) as folder:
            folder.check(overwrite=True, is_known=bool(record))
            # Models and data that the command reads must not lie in the folder that is emptied.
            words = (word for word in cell.words[1:] if Path(word) != cell.folder)
            folder.check_apart((*cell.inputs, *filter(None, map(local_path, words))))
            folder.clear()
            with suppress(OSError):  # not empty: a lock file may be in it
                cell.folder.rmdir()
        return []

    def _command(self, words: Sequence[str], cell: Cell, environment: Mapping[str, str] | None) -> None:
        log = self._folder / "logs" / f"{_slug(cell.name)}.log"
        earlier_size = log.stat().st_size if log.is_file() else 0  # the log has the output of earlier calls too
        rows = worker_rows(f"{__name__}:command_status", {"words": list(words)}, log, environment)
        (status,) = [row["status"] for row in rows]
        if status != 0:
            lines = log.read_bytes()[earlier_size:].decode(errors="replace").splitlines()
            lines = [line for line in lines if line.strip()]
            last = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
            error = _DivergedError if last.startswith(_DIVERGED_MESSAGE) else RunError
            raise error(f"{cell.name} ended with status {status}. {last} See {log}. Its command: {cell.command}")

    def _record_path(self, cell: Cell) -> Path:
        return self._folder / "cells" / f"{_slug(cell.name)}.json"

    def _read(self, cell: Cell) -> dict[str, Any]:
        try:
            return cast(dict[str, Any], read_json(self._record_path(cell), "", _Record))
        except InputError:  # missing or damaged: the cell counts as never begun
            return {}

    def _write(self, cell: Cell, status: str, more: dict[str, Any]) -> None:
        path = self._record_path(cell)
        with saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"command": cell.command, "status": status, **more})


def command_status(job: Mapping[str, Any]) -> Iterator[dict[str, int]]:
    """The exit status of a command. Called in a worker process, which does not outlive the study."""
    yield {"status": cli.main(list(job["words"]))}


def _fixed_words(command: str) -> list[str]:
    """The words of an evaluation's command without its models and judges, which may change between calls."""
    variable = ("--adapter", "--checkpoints", "--judges")
    return [
        word
        for before, word in pairwise(("", *shlex.split(command)))
        if before not in variable and word not in variable
    ]


def _input_fingerprints(cell: Cell) -> dict[str, str]:
    return {str(path): fingerprint_files(path) for path in cell.inputs}


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name)


def run_parallel(calls: Iterable[Callable[[], None]], jobs: int) -> None:
    """Make all calls, up to ``jobs`` at the same time; a single job makes them in this thread.

    Threads suffice, since each call waits for a worker process. They are daemons: after an error no further call
    begins, and those under way end with the program. An executor would wait for them.

    Args:
        calls: in the order in which they begin.
        jobs: maximum number of simultaneous calls, at least 1.

    Raises:
        Exception: that of the first call that failed.
    """
    if jobs == 1:
        for call in calls:
            call()
        return
    pending, lock, stopped = iter(calls), threading.Lock(), threading.Event()
    outcomes: SimpleQueue[Exception | None] = SimpleQueue()

    def work() -> None:
        try:
            while not stopped.is_set():
                with lock:  # a generator cannot be advanced by two threads at the same time
                    call = next(pending, None)
                if call is None:
                    break
                call()
        except Exception as error:
            outcomes.put(error)
        else:
            outcomes.put(None)

    for _ in range(jobs):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(jobs):
            error = outcomes.get()
            if error is not None:
                raise error
    finally:
        stopped.set()


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora study", __doc__).parse_into(argv, Call))


def run(call: Call) -> int:
    """Run the cells that are not done, and report; returns the exit status."""
    study = load(Path(call.config[0]), call.preset, call.out)
    check_commands(study)
    if call.dry_run:
        dry_run(study)
        chosen = {"--preset": call.preset, "--out": call.out}
        flags = [word for flag, value in chosen.items() if value for word in (flag, value)]
        suggest("monolora", "study", "--config", call.config[0], *flags)
        return 0
    with ExitStack() as stack:
        stack.enter_context(locked(study.folder, "--out" if call.out else ""))
        STUDY.is_begun(study.folder, "--out" if call.out else "")
        records = None
        if call.records:
            records = stack.enter_context(claim(call.records, KIND, "--records"))
            check_records(study, records)
        run_cells(study, call.jobs)
        say(write_report(study))
        if records:
            keep_records(study, records)
    say(f"{study.folder / 'report' / REPORT}: the same, with figures and table.csv beside it.")
    return 0


def run_cells(study: Study, jobs: int = 1) -> None:
    """Run all cells that are not done, ``jobs`` at a time."""
    runner = Runner(study.folder, len(plan.all_cells(study)), jobs)
    runner.run_all(plan.bases(study))
    runner.run_all((cell for dataset in study.datasets for cell in plan.sweep(study, dataset)), may_diverge=True)
    selected = {dataset: selected_rates(study, dataset) for dataset in study.datasets}
    others = (cell for dataset in study.datasets for cell in plan.repetitions(study, dataset, selected[dataset]))
    runner.run_all(chain(plan.judges(study), others))
    runner.run_all(cell for dataset in study.datasets for cell in plan.evaluations(study, dataset, selected[dataset]))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
