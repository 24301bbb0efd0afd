"""Worker processes: each calls one generator function and sends back its rows as they are yielded.

An engine or a judge takes the memory of a device, sets environment variables, and starts threads and processes of its
own. All of that ends with its worker, before the next one begins. A worker also ends with its parent: it watches its
standard input, which the system closes when the parent is gone, even after SIGKILL.

Run as a program (``python -m monolora.workers``), this file is the worker. Its protocol: one line of JSON on
standard input, the job; then lines of JSON on standard output, ``["row", row]``, and at last ``["end", null]``, or
``["input", message]`` or ``["run", message]`` for the two kinds of errors. In between, ``["notice", message]`` is a
warning that a module of monolora logged: the parent shows it, and the worker's log has it too.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TextIO, cast

from monolora.errors import InputError, RunError, in_one_line
from monolora.files import code_trusted, trusts_code
from monolora.redaction import RedactedStream, redact
from monolora.terminal import STDERR

THREADS = "OMP_NUM_THREADS"
_LAST_LINES = 3  # of the log, in the message of a worker that died


class Task(NamedTuple):
    """What one of several workers does.

    Attributes:
        job: a JSON object.
        log: the worker's output is appended to this file.
        environment: variables of the worker, beside this process's.
    """

    job: Mapping[str, Any]
    log: Path
    environment: Mapping[str, str] = {}


def worker_rows(
    target: str, job: Mapping[str, Any], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows that a generator function yields in a worker process.

    Args:
        target: ``"package.module:function"``; the function takes ``job`` and yields JSON objects.
        job: a JSON object.
        log: the worker's output is appended to this file.
        environment: variables of the worker, beside this process's.

    Raises:
        InputError, RunError: as the function raised them; RunError also if it raised anything else or the worker died.
    """
    task = Task(job, log, environment or {})
    process = _started(task)
    try:
        yield from _received(process, target, task)
    finally:
        _end_group(process)
        _close_pipes(process)


def parallel_rows(target: str, tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
    """The rows that a generator function yields in several worker processes at a time, in the order of their arrival.

    Args:
        target: as for :func:`worker_rows`.
        tasks: one for each worker.

    Raises:
        InputError, RunError: as :func:`worker_rows`, of the first worker that fails. The others are ended.
    """
    arrivals: SimpleQueue[dict[str, Any] | Exception | None] = SimpleQueue()  # None: a worker has done its task

    def receive(process: subprocess.Popen[str], task: Task) -> None:
        try:
            for row in _received(process, target, task):
                arrivals.put(row)
        except Exception as error:
            arrivals.put(error)
        else:
            arrivals.put(None)

    processes: list[subprocess.Popen[str]] = []
    threads: list[threading.Thread] = []
    try:
        for task in tasks:
            processes.append(_started(task))
            threads.append(threading.Thread(target=receive, args=(processes[-1], task)))
            threads[-1].start()
        running = len(tasks)
        while running:
            arrival = arrivals.get()
            if isinstance(arrival, Exception):
                raise arrival
            elif arrival is None:
                running -= 1
            else:
                yield arrival
    finally:
        for process in processes:
            _end_group(process)
        for thread in threads:  # each reads to the end of a pipe
            thread.join()
        for process in processes:
            _close_pipes(process)


def shared_cores(workers: int) -> dict[str, str]:
    """Variables with which so many workers share the CPU's cores evenly, unless the user has set them."""
    # Programs with more threads than cores between them slow each other manyfold.
    if workers == 1 or THREADS in os.environ:
        return {}
    return {THREADS: str(max(1, (os.cpu_count() or 1) // workers))}


def _started(task: Task) -> subprocess.Popen[str]:
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("ab") as stderr:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "monolora.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **task.environment},
            start_new_session=True,  # a process group, so that whatever the worker starts can be ended with it
        )


def _received(process: subprocess.Popen[str], target: str, task: Task) -> Iterator[dict[str, Any]]:
    """Give a worker its job, and yield its rows."""
    assert process.stdin is not None
    assert process.stdout is not None
    request = {"target": target, "job": task.job, "trust_remote_code": trusts_code()}
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        raise _death(process, target, task.log) from None
    for line in process.stdout:
        kind, content = json.loads(line)
        if kind == "row":
            yield content
        elif kind == "notice":
            STDERR.print(content)
        elif kind == "end":
            return
        else:
            raise {"input": InputError, "run": RunError}[kind](content)
    raise _death(process, target, task.log)


def inline_rows(target: str, job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows that a generator function yields in this process; arguments as for :func:`worker_rows`."""
    module, _, name = target.partition(":")
    yield from getattr(importlib.import_module(module), name)(job)


def _death(process: subprocess.Popen[str], target: str, log: Path) -> RunError:
    status = process.wait()
    ending = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    hint = " (memory may have run out)" if status == -signal.SIGKILL else ""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = in_one_line(RuntimeError(" | ".join(lines[-_LAST_LINES:]))) if lines else "It printed nothing."
    return RunError(f"The process of {target.partition(':')[0]} {ending}{hint}. {last} See {log}.")


def _end_group(process: subprocess.Popen[str]) -> None:
    """Kill the worker and whatever it started. All of its rows have been read, or are not wanted any more."""
    with suppress(ProcessLookupError):  # the whole group has ended already
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _close_pipes(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):  # the worker died before it had read the whole job
            pipe.close()


def main() -> None:
    """Do one job."""
    # Libraries print on stdout too. Rows get the real one; everything else goes to stderr, which is the log.
    rows = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout, sys.stderr = (cast(TextIO, RedactedStream(stream)) for stream in (sys.stdout, sys.stderr))
    notices = logging.getLogger("monolora")
    notices.addHandler(logging.StreamHandler())
    notices.addHandler(_Notices(rows))
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with code_trusted(request["trust_remote_code"]):
            for row in inline_rows(request["target"], request["job"]):
                _send(rows, "row", row)
    except InputError as error:
        _send(rows, "input", redact(str(error)))
    except RunError as error:
        _send(rows, "run", redact(str(error)))
    else:
        _send(rows, "end", None)
    # Skip the interpreter's shutdown: engines take seconds for theirs, and the parent kills the whole group anyway.
    os._exit(0)


class _Notices(logging.Handler):
    """Sends warnings to the parent."""

    def __init__(self, rows: TextIO) -> None:
        super().__init__(logging.WARNING)
        self._rows = rows

    def emit(self, record: logging.LogRecord) -> None:
        _send(self._rows, "notice", redact(record.getMessage()))


def _send(rows: TextIO, kind: str, content: Any) -> None:
    rows.write(json.dumps([kind, content]) + "\n")  # one call, which no other thread's interrupts
    rows.flush()


def _end_with_parent() -> None:
    sys.stdin.read()  # returns when the parent has ended
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
