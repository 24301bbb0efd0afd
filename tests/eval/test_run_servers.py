"""``monolora eval`` over servers in processes of their own, one of which is killed in the middle."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from monolora import cli
from tests.support.completion_process import CompletionProcess, Received
from tests.support.completion_server import text_of
from tests.support.evaluated import Evaluated
from tests.support.limits import HANG_S

CONCURRENCY = 3
PROMPTS, MODELS = 11, 3  # distinct ones, and the base with two adapters
FIRST, SECOND = 8, 5  # how many requests each server answers before one is killed


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()] if path.exists() else []


def answered(server: CompletionProcess) -> list[Received]:
    return [request for request in server.received() if not request.held]


def test_a_killed_server_loses_nothing_and_nothing_is_asked_twice(
    evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever one server answered before it was killed is stored, and the other is not asked for it."""
    out = tmp_path / "out"
    served = [str(evaluated.base), "lora", "mono"]

    def run(*endpoints: str) -> str:
        words = [
            *evaluated.flags(), "--suite", str(evaluated.prompts), "--judges", "refusal", "--engine", "server",
            "--concurrency", str(CONCURRENCY), "--retries", "1", "--max-new-tokens", "6", "--skip-sparsity",
            "--out", str(out), *(word for url in endpoints for word in ("--endpoint", url)),
        ]  # fmt: skip
        assert cli.main(["eval", "run", *words]) == 0
        return " ".join(capsys.readouterr().err.split())  # without the terminal's line ends

    with (
        CompletionProcess(tmp_path / "one", FIRST, served) as lost,
        CompletionProcess(tmp_path / "two", SECOND, served) as other,
    ):

        def kill_one() -> None:
            stored = out / "responses.jsonl"
            wait_until(lambda: len(texts(stored)) == FIRST + SECOND)
            wait_until(lambda: len(lost.received()) == FIRST + CONCURRENCY)
            lost.kill()
            other.release()

        killer = threading.Thread(target=kill_one)
        killer.start()
        printed = run(lost.url, other.url)
        killer.join()

        assert sorted(texts(out / "responses.jsonl")) == sorted(
            text_of(request.prompt, request.model) for request in (*answered(lost), *other.received())
        )
        moved = [request for request in lost.received() if request.held]
        asked = Counter((request.model, request.prompt) for request in (*answered(lost), *other.received()))
        assert len(asked) == PROMPTS * MODELS
        assert set(asked.values()) == {1}
        assert {(request.model, request.prompt) for request in moved} <= {
            (request.model, request.prompt) for request in other.received()
        }
        assert re.search(rf"{lost.url} is unavailable, next try in 0\.5 s: ", printed)
        assert printed.count("is unavailable") == 1
        assert f"Requests moved from {lost.url} to other endpoints: {len(moved)}." in printed
        assert len(moved) == CONCURRENCY

        requests, records = len(other.received()), (out / "responses.jsonl").read_bytes()
        run(other.url)
        assert len(other.received()) == requests
        assert (out / "responses.jsonl").read_bytes() == records
