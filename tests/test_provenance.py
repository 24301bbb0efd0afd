"""Where numbers come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from monolora import provenance


def test_provenance() -> None:
    found = provenance.provenance()
    assert found["versions"].keys() >= {"torch", "transformers", "peft", "trl", "monolora", "python"}
    assert found["git"] is None or len(found["git"]["commit"]) == 40


def test_no_git_state_outside_of_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.provenance()["git"] is None
