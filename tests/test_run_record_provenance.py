"""Where numbers come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from monolora import run_record


def test_provenance() -> None:
    found = run_record.provenance()
    assert found["versions"].keys() >= {"torch", "transformers", "peft", "trl", "monolora", "python"}
    assert found["git"] is None or len(found["git"]["commit"]) == 40


def test_no_git_state_outside_of_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_record, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert run_record.provenance()["git"] is None
