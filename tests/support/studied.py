"""The cells of a study in this process, or in forks: saves a test the seconds in which a process starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from monolora import cli
from monolora.recipes.study import alignment
from monolora.recipes.study.alignment import Runner
from tests.support import forks


def run_cells_here(monkeypatch: pytest.MonkeyPatch, commands: list[list[str]]) -> None:
    """Until the patch is undone; ``commands`` gets the words of each command."""

    def run(self: Runner, words: Sequence[str], cell: Any, environment: Any) -> None:
        commands.append(list(words))
        assert cli.main(list(words)) == 0

    monkeypatch.setattr(Runner, "_command", run)


def run_cells_in_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone: in processes of their own, whose output goes to the log."""

    def rows(target: str, job: Mapping[str, Any], log: Path, environment: Any) -> Iterator[dict[str, int]]:
        ended = forks.run("import sys; from monolora import cli; sys.exit(cli.main())", *job["words"])
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(ended.stdout + ended.stderr)
        yield {"status": ended.returncode}

    monkeypatch.setattr(alignment, "worker_rows", rows)
