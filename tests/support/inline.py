"""Engines and judges in this process instead of their own: saves a test the seconds in which a process starts."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from monolora.eval import generate, measurements, score
from monolora.workers import Task


def results_inline(target: str, job: Mapping[str, Any], log: Path) -> Iterator[dict[str, Any]]:
    """As ``monolora.workers.worker_rows``; job and rows go through JSON there."""
    module, _, name = target.partition(":")
    for row in getattr(importlib.import_module(module), name)(json.loads(json.dumps(job))):
        yield json.loads(json.dumps(row))


def all_results_inline(target: str, tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
    """As ``monolora.workers.parallel_rows``, one after the other."""
    for task in tasks:
        yield from results_inline(target, task.job, task.log)


def run_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the rest of a test."""
    monkeypatch.setattr(generate, "parallel_rows", all_results_inline)
    for module in (measurements, score):
        monkeypatch.setattr(module, "worker_rows", results_inline)


class Outcome(NamedTuple):
    """How the program ended, and the records in its folder."""

    status: int
    out: str
    err: str
    folder: Path

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text())

    def run(self) -> dict[str, Any]:
        return json.loads((self.folder / "run.json").read_text())
