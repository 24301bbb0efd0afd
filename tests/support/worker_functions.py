"""What the tests of ``monolora.workers`` run in a process of its own."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monolora.errors import InputError, RunError


def doubled(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    print("this goes to the log")
    for number in job["numbers"]:
        yield {"double": 2 * number, "pid": os.getpid()}


def variables(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {name: os.environ.get(name) for name in job["names"]}


def met(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Waits until all have come to the same folder."""
    folder = Path(job["folder"])
    (folder / job["name"]).touch()
    while len(list(folder.iterdir())) < job["number"]:
        time.sleep(0.01)
    yield {"name": job["name"], "pid": os.getpid(), "part": os.environ.get("PART")}
    if job["name"] == job.get("failing"):
        raise RunError("It fails.")
    time.sleep(job["rest_s"])
    yield {"end": job["name"]}


def warned(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"first": 1}
    logging.getLogger("monolora.eval").warning("It is %s.", "late")
    logging.getLogger("monolora.eval").info("It is noon.")
    logging.getLogger("another").warning("Nobody asked.")
    yield {"second": 2}


def bad_input(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"first": 1}
    raise InputError("Give another one.")


def failure(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    raise RunError("It does not start.")
    yield {}


def bug(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    raise ZeroDivisionError("of the first kind")
    yield {}


def killed(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"first": 1}
    os.kill(os.getpid(), 9)


def with_child(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row with its own and its child's process ids; then it never ends."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield {"pids": [os.getpid(), child.pid]}
    time.sleep(600)
