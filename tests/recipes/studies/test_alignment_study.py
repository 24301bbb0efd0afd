"""The whole study on tiny models: what it leaves, what a second call does, and what a lost cell costs."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from inline import run_inline
from studied import run_cells_here

from monolora.errors import InputError, RunError
from monolora.recipes.studies import alignment
from monolora.recipes.studies.about import about
from monolora.recipes.studies.cells import Cell, curves, evaluation, planned, training
from monolora.recipes.studies.checks import check_commands
from monolora.recipes.studies.chosen import chosen, rates
from monolora.recipes.studies.gathered import of_dataset
from monolora.recipes.studies.running import Runner, only_one
from monolora.recipes.studies.settings import Study, load

pytestmark = pytest.mark.slow


def _program(root: Path) -> Callable[..., int]:
    """``program(*flags)``: the study in ``root``."""

    def run(*flags: str) -> int:
        return alignment.main(["--config", str(root / "study.yaml"), "--out", str(root / "out"), *flags])

    return run


@pytest.fixture(scope="module")
def whole(study_content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study that is done, in its folder beside its file; leave it as it is."""
    root = tmp_path_factory.mktemp("study")
    (root / "study.yaml").write_text(yaml.safe_dump(study_content, sort_keys=False))
    given: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        run_inline(patch)
        patch.delenv("MONOLORA_DATA", raising=False)
        run_cells_here(patch, given)
        assert _program(root)() == 0
    study = load(root / "study.yaml", out=str(root / "out"))
    assert len(given) == len(planned(study)) == 4 + 2 + 2
    return study


def test_what_a_study_leaves(whole: Study) -> None:
    files = _report(whole)
    assert {"report.md", "table.csv", "verdicts.json", "standing.png", "standing.svg", "curves.png"} <= files.keys()
    _check_report(whole, files)


def test_a_second_call_and_one_without_a_cell(
    whole: Study, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_inline(monkeypatch)
    monkeypatch.delenv("MONOLORA_DATA", raising=False)
    again, first = _program(whole.folder.parent), _report(whole)
    assert again() == 0
    assert commands == []
    assert _report(whole) == first
    assert capsys.readouterr().out.startswith(first["report.md"].decode())

    lost = training(whole, "demo", "MonoLoRA", chosen(whole, "demo", "MonoLoRA").rate, 2)
    shutil.rmtree(lost.folder)
    assert again() == 0
    assert [words[0] for words in commands] == ["sft"]
    assert str(lost.folder) in commands[0]
    # the same weights again: the evaluation has nothing to do
    assert _report(whole) == first

    commands.clear()
    shutil.rmtree(whole.folder / "demo" / "eval")
    assert again() == 0
    assert [words[:2] for words in commands] == [["eval", "run"]]
    assert _report(whole)["report.md"] == first["report.md"]


def _report(study: Study) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (study.folder / "report").iterdir()}


def _check_report(study: Study, files: dict[str, bytes]) -> None:
    text = files["report.md"].decode()
    verdicts = json.loads(files["verdicts.json"])
    assert f"Of {len(verdicts)} claims" in text
    for each in verdicts:
        assert f"- demo: {each['claim']} ({each['source']}): **{each['answer']}**. " in text
    for link in re.findall(r"\]\((.*?)\)", text):
        assert (study.folder / "report" / link).is_file(), link
    assert text.count("run.json)") >= len(study.adapters) * len(study.seeds)
    rows = list(csv.DictReader(files["table.csv"].decode().splitlines()))
    columns = {each.column.id: each for each in of_dataset(study, "demo")}
    results = json.loads((study.folder / "demo" / "eval" / "results.json").read_text())
    for row in rows:
        values = columns[row["column"]]
        models = [row["model"]] if row["model"] == "base" else [f"{row['model']}-seed{seed}" for seed in study.seeds]
        of_seeds = [results["cells"][model][row["column"]]["value"] for model in models]
        # the mean over seeds of what the evaluation says of each, where no prompt is invalid
        assert float(row["mean"]) == pytest.approx(np.mean(of_seeds)), row
        assert int(row["seeds"]) == len(models)
        assert values.column.title == row["title"]


def test_differences_are_paired(whole: Study) -> None:
    results = json.loads((whole.folder / "demo" / "eval" / "results.json").read_text())
    for each in of_dataset(whole, "demo"):
        found = each.difference("MonoLoRA", "LoRA")
        if found is not None and each.column.test is not None:
            of_seeds = [
                results["cells"][f"MonoLoRA-seed{seed}"][each.column.id]["value"]
                - results["cells"][f"LoRA-seed{seed}"][each.column.id]["value"]
                for seed in whole.seeds
            ]
            assert found.mean == pytest.approx(np.mean(of_seeds))


def test_rates_are_those_of_the_lowest_validation_loss(whole: Study) -> None:
    for adapter in whole.adapters:
        losses = {}
        for rate in whole.learning_rates:
            run = json.loads((training(whole, "demo", adapter, rate, 1).folder / "run.json").read_text())
            losses[rate] = run["results"]["validation"]["loss"]
            assert run["config"]["seed"] == 1
            assert run["config"]["learning_rate"] == rate
        found = chosen(whole, "demo", adapter)
        assert found.losses == losses
        assert found.rate == min(losses, key=losses.__getitem__) == rates(whole, "demo")[adapter]
        assert found.is_edge  # of two, each is one


def test_adapters_of_a_seed_see_the_same_examples_in_the_same_order(whole: Study) -> None:
    for seed in whole.seeds:
        runs = [
            json.loads((training(whole, "demo", adapter, rate, seed).folder / "run.json").read_text())
            for adapter, rate in rates(whole, "demo").items()
        ]
        own = {"adapter", "activation", "output_dir", "learning_rate", "logging_dir"}
        configs = [{key: value for key, value in run["config"].items() if key not in own} for run in runs]
        assert configs[0] == configs[1]
        assert runs[0]["fingerprints"]["train"] == runs[1]["fingerprints"]["train"]


@pytest.mark.parametrize("checkpoint", [False, True])
def test_an_interrupted_training_goes_on(
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
    assert runner._going_on(longer) == []
    runner._write(longer, "begun", {})  # and killed
    assert not cell.folder.exists()
    runner.run(longer)
    assert commands[-1] == list(longer.words)


def test_another_judge_makes_evaluations_stale(study: Study) -> None:
    own = replace(study, judge={}, eval=dict(study.eval) | {"judges": ["classifier:JUDGE", "refusal"]})
    for cell in (evaluation(own, "demo", {"LoRA": 0.02}), *curves(own, "demo", {"MonoLoRA": 0.02})):
        assert own.folder / "judge" in cell.inputs


def test_a_rate_at_which_training_diverges_is_not_chosen(study: Study) -> None:
    """In a process of its own, with a rate at which the loss is no number after a step."""
    cells = [training(study, "demo", "LoRA", rate, 1) for rate in study.learning_rates]
    wild = cells[0]._replace(words=tuple("1e38" if word == "0.02" else word for word in cells[0].words))
    runner = Runner(study.folder, 2)
    runner.run(wild, may_diverge=True)
    runner.run(cells[1], may_diverge=True)
    assert runner.is_done(wild)
    assert runner.done_now == [cells[1].name]
    found = chosen(study, "demo", "LoRA")
    assert found.rate == 0.002
    assert found.losses[0.02] == float("inf")
    shutil.rmtree(wild.folder)
    with pytest.raises(RunError, match="diverged"):
        runner.run(wild)


def test_two_at_once_are_refused(study: Study) -> None:
    with only_one(study.folder), pytest.raises(InputError, match="Another process works on"), only_one(study.folder):
        pass


def test_adapters_that_did_not_see_the_same_are_no_comparison(whole: Study) -> None:
    found = {"demo": {adapter: chosen(whole, "demo", adapter) for adapter in whole.adapters}}
    said = about(whole, found)
    assert "demo: 16 examples, 1 epochs, 4 steps of 4, rank 4" in said
    assert "8 training examples" in said
    path = training(whole, "demo", "MonoLoRA", found["demo"]["MonoLoRA"].rate, 2).folder / "run.json"
    before = path.read_text()
    path.write_text(before.replace('"num_train_epochs": 1.0', '"num_train_epochs": 2.0'))
    try:
        with pytest.raises(InputError, match="demo, seed 2: the adapters did not see the same"):
            about(whole, found)
    finally:
        path.write_text(before)


def test_another_command_is_another_cell(study: Study, commands: list[list[str]]) -> None:
    cell = training(study, "demo", "LoRA", 0.02, 1)
    runner = Runner(study.folder, 9)
    runner.run(cell)
    runner.run(cell)
    assert runner.done_now == [cell.name]
    longer = cell._replace(words=(*cell.words, "--num-train-epochs", "2"))
    assert not runner.is_done(longer)
    runner.run(longer)
    assert commands[-1] == list(longer.words)
    assert json.loads((cell.folder / "run.json").read_text())["config"]["num_train_epochs"] == 2
    assert not runner.is_done(cell)


def test_an_evaluation_with_other_settings_begins_anew(study: Study, commands: list[list[str]]) -> None:
    """With other adapters it goes on: what was answered is kept."""
    cell = evaluation(study, "demo", {"LoRA": 0.02})
    cell.folder.mkdir(parents=True)
    (cell.folder / "responses.jsonl").write_text("")
    runner = Runner(study.folder, 1)
    runner._write(cell, "begun", {})
    more = evaluation(study, "demo", {"LoRA": 0.02, "MonoLoRA": 0.002})
    assert more.command != cell.command
    assert runner._going_on(more) == []
    assert (cell.folder / "responses.jsonl").is_file()
    longer = cell._replace(words=(*cell.words, "--limit", "2"))
    assert runner._going_on(longer) == []
    assert not cell.folder.exists()


def test_a_cell_that_fails_says_why(study: Study, tmp_path: Path) -> None:
    """In a process of its own, as it is run outside of tests."""
    cell = training(study, "demo", "LoRA", 0.02, 1)
    broken = cell._replace(words=tuple("nowhere" if word == study.model else word for word in cell.words))
    with pytest.raises(RunError, match=r"ended with status 2\. error: .*nowhere.* See .*\.log\. Its command: monolora"):
        Runner(study.folder, 1).run(broken)
    assert not Runner(study.folder, 1).is_done(broken)


def test_dry_run_prints_every_command_and_runs_none(
    write_study: Callable[..., Path], study: Study, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert alignment.main(["--config", str(write_study()), "--out", study.out, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert commands == []
    assert not study.folder.exists()
    for cell in planned(study):
        assert cell.command in out
    assert "demo: training" in out
    assert "a toy" in out


@pytest.mark.parametrize(("name", "preset"), [("smollm2.yaml", "cpu"), ("smollm2.yaml", "gpu"), ("llama2.yaml", None)])
def test_the_studies_that_come_with_the_project_are_whole(name: str, preset: str | None, tmp_path: Path) -> None:
    """Their commands are read by the programs that they are for."""
    study = load(Path(alignment.__file__).with_name(name), preset, str(tmp_path))
    check_commands(study)
    words = [cell.words[0] for cell in planned(study)]
    assert words.count("sft") == 2 * 4 * (3 + 2)
    assert words.count("eval") == 2 * (1 + 2)
    assert len(study.seeds) >= 3
    assert len(study.learning_rates) >= 3


def test_the_laptops_study_is_reckoned_on_the_real_data(mirror: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(Path(alignment.__file__).with_name("smollm2.yaml"))
    assert alignment.main(["--config", config, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "dolly: answers" in out
    assert "two CPU cores" in out
