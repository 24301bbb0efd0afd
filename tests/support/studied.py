"""The cells of a study in this process instead of their own: saves a test the seconds in which a process starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from monolora import cli
from monolora.recipes.study.alignment import Runner


def run_cells_here(monkeypatch: pytest.MonkeyPatch, commands: list[list[str]]) -> None:
    """Until the patch is undone; ``commands`` gets the words of each command."""

    def run(self: Runner, words: Sequence[str], cell: Any) -> None:
        commands.append(list(words))
        assert cli.main(list(words)) == 0

    monkeypatch.setattr(Runner, "_command", run)
