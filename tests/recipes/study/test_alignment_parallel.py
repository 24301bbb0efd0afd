"""Calls at a time: how many, in which order, and what a failure ends."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from monolora.recipes.study.alignment import run_parallel
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
