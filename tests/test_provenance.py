"""Where numbers come from, and writing records of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from monolora import provenance


def test_write_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN and infinity are no JSON; a disk that takes no more leaves the old file."""
    path = tmp_path / "some.json"
    provenance.write_json(path, {"a": float("-inf"), "b": [float("nan"), 1.5], "c": "NaN"})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.5], "c": "NaN"}

    def full(self: Path, text: str) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left on device"):
        provenance.write_json(path, {"a": 1})
    assert os.listdir(tmp_path) == ["some.json"]
    assert json.loads(path.read_text())["c"] == "NaN"


def test_provenance() -> None:
    found = provenance.provenance()
    assert found["versions"].keys() >= {"torch", "transformers", "peft", "trl", "monolora", "python"}
    assert found["git"] is None or len(found["git"]["commit"]) == 40


def test_no_git_state_outside_of_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.provenance()["git"] is None
