"""Processes of their own: rows come as they are made, errors by kind, and nothing is left running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from monolora.errors import InputError, RunError
from monolora.workers import Task, parallel_rows, worker_rows
from tests.support import worker_functions
from tests.support.limits import HANG_S


@pytest.fixture(autouse=True)
def _functions_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(worker_functions.__file__).parent))


def rows_of(name: str, log: Path, **job: Any) -> Iterator[dict[str, Any]]:
    return worker_rows(f"worker_functions:{name}", job, log)


def test_rows(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "a.log"
    rows = list(rows_of("doubled", log, numbers=list(range(20_000))))
    assert [row["double"] for row in rows] == list(range(0, 40_000, 2))
    assert {row["pid"] for row in rows} != {os.getpid()}
    assert "this goes to the log" in log.read_text()


def test_variables_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTER", "outer")
    job = {"names": ["OUTER", "INNER"]}
    rows = worker_rows("worker_functions:variables", job, tmp_path / "log", {"INNER": "inner"})
    assert list(rows) == [{"OUTER": "outer", "INNER": "inner"}]
    assert "INNER" not in os.environ


def test_warnings_of_our_own_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(rows_of("warned", tmp_path / "log")) == [{"first": 1}, {"second": 2}]
    assert capsys.readouterr().err == "It is late.\n"
    assert (tmp_path / "log").read_text().splitlines() == ["It is late.", "Nobody asked."]


def test_errors_keep_their_kind(tmp_path: Path) -> None:
    rows = rows_of("bad_input", tmp_path / "log")
    assert next(rows) == {"first": 1}
    with pytest.raises(InputError, match=r"^Give another one\.$"):
        next(rows)
    with pytest.raises(RunError, match=r"^It does not start\.$"):
        list(rows_of("failure", tmp_path / "log"))


def test_anything_else_is_a_failure_with_the_last_words_of_the_log(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"ended with status 1\. .*ZeroDivisionError: of the first kind. See .*log"):
        list(rows_of("bug", tmp_path / "log"))


def test_a_killed_process(tmp_path: Path) -> None:
    rows = rows_of("killed", tmp_path / "log")
    assert next(rows) == {"first": 1}
    with pytest.raises(RunError, match=r"ended by signal 9 \(memory may have run out\). It printed nothing"):
        next(rows)


def test_closing_ends_it_and_its_children(tmp_path: Path) -> None:
    rows = rows_of("with_child", tmp_path / "log")
    pids = next(rows)["pids"]
    assert all(map(psutil.pid_exists, pids))
    rows.close()  # type: ignore[attr-defined]
    assert_gone(pids)


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """However the parent goes: SIGKILL leaves it no time to say so."""
    program = (
        "import json\nfrom pathlib import Path\nfrom monolora.workers import worker_rows\n"
        f"for row in worker_rows('worker_functions:with_child', {{}}, Path({str(tmp_path / 'log')!r})):\n"
        "    print(json.dumps(row), flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pids = json.loads(parent.stdout.readline())["pids"]
        parent.kill()
        parent.wait()
    assert_gone(pids)


def meeting(folder: Path, **job: Any) -> Iterator[dict[str, Any]]:
    """Three workers at the same time: each waits for the others."""
    (folder / "meeting").mkdir()
    job = {"folder": str(folder / "meeting"), "number": 3, "rest_s": 0} | job
    tasks = [Task(job | {"name": name}, folder / name, {"PART": name.upper()}) for name in "abc"]
    return parallel_rows("worker_functions:met", tasks)


def test_several_workers_at_a_time(tmp_path: Path) -> None:
    rows = list(meeting(tmp_path))
    began = {row["name"]: row for row in rows if "name" in row}
    assert {name: row["part"] for name, row in began.items()} == {"a": "A", "b": "B", "c": "C"}
    assert len({row["pid"] for row in began.values()} | {os.getpid()}) == 4
    assert sorted(row["end"] for row in rows if "end" in row) == ["a", "b", "c"]
    assert [(tmp_path / name).exists() for name in "abc"] == [True] * 3


def test_a_worker_that_fails_ends_the_others(tmp_path: Path) -> None:
    rows = meeting(tmp_path, failing="b", rest_s=HANG_S)
    pids = [next(rows)["pid"]]
    with pytest.raises(RunError, match=r"^It fails\.$"):
        pids += [row["pid"] for row in rows]
    assert_gone(pids)


def test_closing_ends_all_workers(tmp_path: Path) -> None:
    rows = meeting(tmp_path, rest_s=HANG_S)
    pids = [next(rows)["pid"] for _ in range(3)]
    assert all(map(psutil.pid_exists, pids))
    rows.close()  # type: ignore[attr-defined]
    assert_gone(pids)


def assert_gone(pids: list[int]) -> None:
    end = time.monotonic() + HANG_S
    while time.monotonic() < end and any(map(is_running, pids)):
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def is_running(pid: int) -> bool:
    """Not even as a zombie that nobody waits for."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
