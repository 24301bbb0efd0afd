"""The notebook runs from its first cell to its last, and what is kept of it came out of one such run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.limits import HANG_S

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"
# A run of seconds; the last of a flag counts.
SMALLER = {
    "sft": "--max-train-samples 16 --num-train-epochs 1 --keep-samples 16 --keep-answer-tokens 2 --max-eval-samples 4",
    "explain": "--max-texts 24 --ablation-prompts 2 --safety-prompts 1 --logit-contexts 0",
    "merge": "--verify-tokens 100 --task-samples 4",
}


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _printed(notebook: Any) -> str:
    return "".join(output.get("text", "") for cell in _code(notebook) for output in cell.outputs)


def _check_silence(printed: str) -> None:
    """Up to the first token on which a unit is on, all logits are the base's, bit for bit."""
    found = re.findall(r"(\d+) tokens, the first (\d+) silent, logits equal on the first (\d+)", printed)
    assert len(found) == 2
    for tokens, silent, equal in (map(int, numbers) for numbers in found):
        assert silent <= equal <= tokens


def test_runs_from_nothing(chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model, and less data: the commands, and the code between them."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{Path('/usr/bin')}:{Path('/bin')}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    commands = []
    for cell in _code(notebook):
        for name, flags in SMALLER.items():
            added = f"{flags} --model {chat_model}" if name == "sft" else flags
            cell.source, found = re.subn(rf"(monolora {name} .*?) 2> ", rf"\1 {added} 2> ", cell.source, flags=re.S)
            commands += [name] * found
    assert commands == list(SMALLER)
    NotebookClient(notebook, timeout=HANG_S, resources={"metadata": {"path": str(tmp_path)}}).execute()
    _check_silence(_printed(notebook))
    assert (tmp_path / "tutorial/explained/explorer.html").is_file()
    assert (tmp_path / "tutorial/merged/merge_report.html").is_file()


def test_kept_outputs() -> None:
    """In order, of every cell, without an error; and they say what the text around them says."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert [cell.execution_count for cell in _code(notebook)] == list(range(1, len(_code(notebook)) + 1))
    assert not [output for cell in _code(notebook) for output in cell.outputs if output.output_type == "error"]
    assert not [output for cell in _code(notebook) for output in cell.outputs if output.get("name") == "stderr"]
    printed = _printed(notebook)
    _check_silence(printed)
    assert "The merge keeps 100.00% of the adapter's effect." in printed
