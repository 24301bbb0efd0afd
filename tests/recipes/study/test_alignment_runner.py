"""Cells: which are done, which resume, which begin anew."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from monolora.errors import RunError, exit_status
from monolora.locks import locked
from monolora.recipes.study.alignment import Runner, main
from monolora.recipes.study.plan import Cell, curves, evaluation, select_rate, training
from monolora.recipes.study.settings import Study
from tests.support.studied import run_cells_in_forks

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("checkpoint", [False, True])
def test_an_interrupted_training_resumes(
    study: Study, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, checkpoint: bool
) -> None:
    """From its last checkpoint; anew if it had none. The result is that of one that was not."""
    cell = training(study, "demo", "MonoLoRA", 0.02, 1)
    Runner(study.folder, 1).run(cell)
    weights = (cell.folder / "adapter_model.safetensors").read_bytes()
    for name in ("adapter_model.safetensors", "run.json"):
        (cell.folder / name).unlink()
    shutil.rmtree(cell.folder / "checkpoint-4")
    record = json.loads((cell.folder / "checkpoint-2" / "trainer_state.json").read_text())
    assert record["global_step"] == 2
    if not checkpoint:
        shutil.rmtree(cell.folder / "checkpoint-2")
    running = json.loads((study.folder / "cells" / "demo-MonoLoRA-lr-0.02-seed-1.json").read_text())
    (study.folder / "cells" / "demo-MonoLoRA-lr-0.02-seed-1.json").write_text(
        json.dumps({"command": running["command"], "status": "begun"})
    )
    _write_running_record(study, cell)
    commands.clear()
    Runner(study.folder, 1).run(cell)
    assert commands[0][len(cell.words) :] == (["--resume-from-checkpoint"] if checkpoint else [])
    assert (cell.folder / "adapter_model.safetensors").read_bytes() == weights


def _write_running_record(study: Study, cell: Cell) -> None:
    """As a training leaves it that was killed: begun, and not done."""
    other = training(study, "demo", "MonoLoRA", 0.02, 1)._replace(folder=cell.folder.parent / "whole")
    words = [str(other.folder) if word == str(cell.folder) else word for word in cell.words]
    Runner(study.folder, 1).run(other._replace(name="whole", words=tuple(words)))
    record = json.loads((other.folder / "run.json").read_text())
    record["config"]["output_dir"] = str(cell.folder)
    (cell.folder / "run.json").write_text(json.dumps(record | {"status": "running"}))


def test_a_changed_command_that_was_killed_while_it_loaded_begins_anew(study: Study, commands: list[list[str]]) -> None:
    """What the earlier command left is gone before the new one is recorded: nothing is resumed from it."""
    cell = training(study, "demo", "LoRA", 0.02, 1)
    runner = Runner(study.folder, 9)
    runner.run(cell)
    longer = cell._replace(words=(*cell.words, "--num-train-epochs", "2"))
    assert runner._resume_flags(longer) == []
    runner._write(longer, "begun", {})  # and killed
    assert not cell.folder.exists()
    runner.run(longer)
    assert commands[-1] == list(longer.words)


def test_another_judge_makes_evaluations_stale(study: Study) -> None:
    own = replace(study, judges={"own": {}}, eval=dict(study.eval) | {"judges": ["classifier:own", "refusal"]})
    for cell in (evaluation(own, "demo", {"LoRA": 0.02}), *curves(own, "demo", {"MonoLoRA": 0.02})):
        assert own.folder / "own" in cell.inputs


def test_a_rate_at_which_training_diverges_is_not_chosen(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both at the same time, in processes of their own; with the one the loss is no number after a step."""
    cells = [training(study, "demo", "LoRA", rate, 1) for rate in study.learning_rates]
    wild = cells[0]._replace(words=tuple("1e38" if word == "0.02" else word for word in cells[0].words))
    run_cells_in_forks(monkeypatch)
    runner = Runner(study.folder, 2, jobs=2)
    runner.run_all([wild, cells[1]], may_diverge=True)
    assert runner.is_done(wild)
    assert runner.completed == [cells[1].name]
    selected = select_rate(study, "demo", "LoRA")
    assert selected.rate == 0.002
    assert selected.losses[0.02] == float("inf")
    shutil.rmtree(wild.folder)
    with pytest.raises(RunError, match="diverged"):
        runner.run(wild)


def test_a_training_that_fails_otherwise_is_no_result(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its folder is called, and whatever its log says of an earlier one."""
    cell = training(study, "demo", "LoRA", 0.02, 1)
    words = tuple("nowhere" if word == study.model else word for word in cell.words)
    broken = cell._replace(name="diverged", folder=study.folder / "diverged", words=words)
    log = study.folder / "logs" / "diverged.log"
    log.parent.mkdir(parents=True)
    log.write_text("error: Training diverged: an earlier one.\n")
    run_cells_in_forks(monkeypatch)
    with pytest.raises(RunError, match="nowhere"):
        Runner(study.folder, 1).run(broken, may_diverge=True)


def test_a_second_study_in_the_folder_is_refused(
    study: Study, write_study: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(write_study()), "--out", str(study.folder)]
    with locked(study.folder):
        assert exit_status(lambda: main(words)) == 2
    assert f"--out {study.folder} is in use by process {os.getpid()}" in capsys.readouterr().err
    assert not study.folder.exists()


def test_another_command_is_another_cell(study: Study, commands: list[list[str]]) -> None:
    cell = training(study, "demo", "LoRA", 0.02, 1)
    runner = Runner(study.folder, 9)
    runner.run(cell)
    runner.run(cell)
    assert runner.completed == [cell.name]
    longer = cell._replace(words=(*cell.words, "--num-train-epochs", "2"))
    assert not runner.is_done(longer)
    runner.run(longer)
    assert commands[-1] == list(longer.words)
    assert json.loads((cell.folder / "run.json").read_text())["config"]["num_train_epochs"] == 2
    assert not runner.is_done(cell)


def test_an_evaluation_with_other_settings_begins_anew(study: Study, commands: list[list[str]]) -> None:
    """With other adapters, and other judges, it resumes, and keeps its responses."""
    cell = evaluation(study, "demo", {"LoRA": 0.02})
    cell.folder.mkdir(parents=True)
    (cell.folder / "responses.jsonl").write_text("")
    runner = Runner(study.folder, 1)
    runner._write(cell, "begun", {})
    extended = evaluation(study, "demo", {"LoRA": 0.02, "MonoLoRA": 0.002})
    assert extended.command != cell.command
    assert runner._resume_flags(extended) == []
    assert (cell.folder / "responses.jsonl").is_file()
    judged = cell._replace(words=tuple("refusal" if "classifier:" in word else word for word in cell.words))
    assert judged.command != cell.command
    assert runner._resume_flags(judged) == []
    assert (cell.folder / "responses.jsonl").is_file()
    longer = cell._replace(words=(*cell.words, "--limit", "2"))
    assert runner._resume_flags(longer) == []
    assert not cell.folder.exists()


def test_a_cell_that_fails_says_why(study: Study, tmp_path: Path) -> None:
    """In a process of its own, as it is run outside of tests."""
    cell = training(study, "demo", "LoRA", 0.02, 1)
    broken = cell._replace(words=tuple("nowhere" if word == study.model else word for word in cell.words))
    with pytest.raises(RunError, match=r"ended with status 2\. error: .*nowhere.* See .*\.log\. Its command: monolora"):
        Runner(study.folder, 1).run(broken)
    assert not Runner(study.folder, 1).is_done(broken)
