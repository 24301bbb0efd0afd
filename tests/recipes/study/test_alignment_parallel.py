"""Calls at a time: how many, in which order, and what a failure ends."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from monolora.recipes.study import alignment
from monolora.recipes.study.alignment import Runner, run_parallel
from monolora.recipes.study.plan import Cell
from tests.support.limits import HANG_S


def test_one_at_a_time_is_in_order_and_here() -> None:
    seen: list[tuple[int, int]] = []
    run_parallel((partial(lambda n: seen.append((n, threading.get_ident())), n) for n in range(5)), 1)
    assert seen == [(n, threading.get_ident()) for n in range(5)]


@pytest.mark.parametrize("jobs", [2, 3, 9])
def test_so_many_run_at_the_same_time(jobs: int) -> None:
    """Each waits until ``jobs`` of them have met; fewer would never meet, and time out."""
    meeting, finished = threading.Barrier(jobs, timeout=HANG_S), []

    def call(n: int) -> None:
        meeting.wait()
        finished.append(n)

    run_parallel((partial(call, n) for n in range(2 * jobs)), jobs)
    assert sorted(finished) == list(range(2 * jobs))


def test_more_jobs_than_calls() -> None:
    finished: list[int] = []
    run_parallel((partial(finished.append, n) for n in range(2)), 8)
    assert sorted(finished) == [0, 1]
    run_parallel([], 8)


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_first_failure_is_raised_and_nothing_new_begins(jobs: int) -> None:
    release, finished = threading.Event(), []

    def call(n: int) -> None:
        if n == 0:
            raise ValueError("no")
        release.wait()
        finished.append(n)

    with pytest.raises(ValueError, match="no"):
        run_parallel((partial(call, n) for n in range(20)), jobs)
    release.set()
    assert len(finished) <= 1  # the one that was under way


@pytest.mark.parametrize(
    ("jobs", "own", "threads"), [(1, None, None), (2, None, "4"), (3, None, "2"), (9, None, "2"), (2, "1", None)]
)
def test_jobs_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, jobs: int, own: str | None, threads: str | None
) -> None:
    """As many as run at the same time; never where the user has set the number."""
    seen = []

    def rows(target: str, job: Any, log: Path, environment: dict[str, str]) -> list[dict[str, int]]:
        seen.append(environment)
        return [{"status": 0}]

    monkeypatch.setattr(alignment, "worker_rows", rows)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    Runner(tmp_path, 4, jobs).run_all(Cell(name, tmp_path / name, ("judge",)) for name in "abcd")
    assert seen == [{} if threads is None else {"OMP_NUM_THREADS": threads}] * 4
