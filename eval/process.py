"""Work in a process of its own, which gives back rows as it makes them.

An engine or a judge takes the memory of a device, sets environment variables, and brings threads and processes of its
own. All of that ends with its process, before the next one begins. The process ends with its parent too: it watches its
standard input, which the system closes when the parent is gone, however it went.

Run as a program (``python -m monolora.eval.process``), this file is that process.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

from monolora.errors import InputError, RunError, in_one_line
from monolora.redaction import RedactedStream, redact
from monolora.remote_code import code_trusted, trusts_code

_LAST_LINES = 3


def results_of(target: str, job: Mapping[str, Any], log: Path) -> Iterator[dict[str, Any]]:
    """What a generator function yields in a process of its own, row by row.

    Args:
        target: ``"package.module:function"``; the function takes ``job`` and yields JSON objects.
        job: a JSON object.
        log: what the process prints goes to the end of this file.

    Raises:
        InputError, RunError: as the function raised them; RunError too if it raised anything else, or the process died.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "monolora.eval.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,  # a group of its own, so that all that it starts can be ended with it
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        try:
            process.stdin.write(json.dumps({"target": target, "job": job, "trust_remote_code": trusts_code()}) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise _died(process, target, log) from None
        for line in process.stdout:
            kind, content = json.loads(line)
            if kind == "row":
                yield content
            elif kind == "end":
                return
            else:
                raise {"input": InputError, "run": RunError}[kind](content)
        raise _died(process, target, log)
    finally:
        _end_group(process)


def rows_of(target: str, job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a generator function yields in this process; ``target`` and ``job`` as for :func:`results_of`."""
    module, _, name = target.partition(":")
    yield from getattr(importlib.import_module(module), name)(job)


def _died(process: subprocess.Popen[str], target: str, log: Path) -> RunError:
    status = process.wait()
    what = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    hint = " (memory may have run out)" if status == -signal.SIGKILL else ""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = in_one_line(RuntimeError(" | ".join(lines[-_LAST_LINES:]))) if lines else "It printed nothing."
    return RunError(f"The process of {target.partition(':')[0]} {what}{hint}. {last} See {log}.")


def _end_group(process: subprocess.Popen[str]) -> None:
    """End the process and all that it started. What it had to say has been read, so nothing is lost."""
    with suppress(ProcessLookupError):  # it and all of its children have ended already
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):  # the rest of a job that was never read
            pipe.close()


def main() -> None:
    """Do one job. Libraries print on stdout too, so only rows get the real one."""
    rows = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout, sys.stderr = (cast(TextIO, RedactedStream(each)) for each in (sys.stdout, sys.stderr))
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with code_trusted(order["trust_remote_code"]):
            for row in rows_of(order["target"], order["job"]):
                _say(rows, "row", row)
    except InputError as error:
        _say(rows, "input", redact(str(error)))
    except RunError as error:
        _say(rows, "run", redact(str(error)))
    else:
        _say(rows, "end", None)
    # Not past the interpreter's end: engines take their time to shut down, and the parent ends the whole group.
    os._exit(0)


def _say(rows: TextIO, kind: str, content: Any) -> None:
    print(json.dumps([kind, content]), file=rows, flush=True)


def _end_with_parent() -> None:
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
