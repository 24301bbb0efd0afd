"""Saving a finished run in one go, and the hub, which is not asked for real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monolora.errors import InputError, RunError
from monolora.recipes.training import publication
from monolora.recipes.training.arguments import parse

Run = Callable[..., Any]


def test_the_record_comes_last(run_sft: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []

    def replace(self: Path, target: Path) -> Path:
        moved.append(Path(target).name)
        return original(self, target)

    original = Path.replace
    monkeypatch.setattr(Path, "replace", replace)
    assert run_sft("--skip-eval").status == 0
    assert moved[-1] == "run.json"
    assert {"adapter_model.safetensors", "README.md", "training.png"} <= set(moved[1:-1])


class Hub:
    """Stands for ``HfApi``; remembers what it was asked to do."""

    calls: list[tuple[str, Any]]
    broken = ""

    def __init__(self, token: str | None = None) -> None:
        Hub.token = token

    def _call(self, name: str, what: Any) -> None:
        if name == self.broken:
            raise ConnectionError("the hub is on fire")
        Hub.calls.append((name, what))

    def whoami(self) -> dict[str, str]:
        self._call("whoami", None)
        return {"name": "someone"}

    def create_repo(self, repo: str, **options: Any) -> None:
        self._call("create_repo", (repo, options["private"]))

    def upload_folder(self, **options: Any) -> None:
        self._call("upload_folder", (options["repo_id"], options["ignore_patterns"]))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    """A hub that works."""
    Hub.calls, Hub.broken = [], ""
    monkeypatch.setattr(publication, "HfApi", Hub)
    return Hub


def test_push(run_sft: Run, hub: type[Hub]) -> None:
    outcome = run_sft("--skip-eval", "--push-to-hub", "--hub-model-id", "tiny", "--hub-token", "hf_x")
    assert outcome.status == 0
    assert hub.token == "hf_x"
    assert [name for name, _ in hub.calls] == ["whoami", "create_repo", "upload_folder"]
    assert hub.calls[1][1][0] == "someone/tiny"
    assert "checkpoint-*" in hub.calls[2][1][1]


def test_no_login_is_found_before_training(run_sft: Run, hub: type[Hub]) -> None:
    hub.broken = "whoami"
    outcome = run_sft("--push-to-hub")
    assert outcome.status == 2
    assert "the hub is on fire" in outcome.err[-1]
    assert not outcome.folder.exists()


def test_a_failed_push_keeps_the_model(run_sft: Run, hub: type[Hub]) -> None:
    hub.broken = "upload_folder"
    outcome = run_sft("--skip-eval", "--push-to-hub")
    assert outcome.status == 1
    assert "Cannot push to someone/run" in outcome.err[-1]
    assert f"hf upload someone/run {outcome.folder}" in outcome.err[-1]
    assert outcome.record["status"] == "done"


def test_claim(hub: type[Hub]) -> None:
    assert publication.claim(parse([]).training) is None
    training = parse(["--push-to-hub", "--hub-model-id", "org/name"]).training
    assert publication.claim(training) == "org/name"
    assert not training.push_to_hub  # the recipe pushes; the trainer must not
    hub.broken = "whoami"
    with pytest.raises(InputError, match="HF_TOKEN"):
        publication.claim(parse(["--push-to-hub"]).training)


def test_push_reports_what_the_hub_said(hub: type[Hub], tmp_path: Path) -> None:
    hub.broken = "create_repo"
    with pytest.raises(RunError, match=r"Cannot push to a/b: the hub is on fire\."):
        publication.push(tmp_path, "a/b", parse([]).training)
