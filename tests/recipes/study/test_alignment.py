"""The whole study on tiny models: what it leaves, what a second call does, and what a lost cell costs."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from monolora.errors import InputError
from monolora.recipes.study import alignment
from monolora.recipes.study.plan import all_cells, check_commands, select_rate, selected_rates, training
from monolora.recipes.study.report import KIND, about, check_records, keep_records
from monolora.recipes.study.results import of_dataset
from monolora.recipes.study.settings import Study, load
from monolora.runs import claim
from tests.support.inline import run_inline
from tests.support.studied import run_cells_here

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
    assert len(given) == len(all_cells(study)) == 4 + 2 + 2
    return study


def test_what_a_study_leaves(whole: Study) -> None:
    files = _report(whole)
    assert {
        "report.md",
        "report.html",
        "table.csv",
        "verdicts.json",
        "differences.csv",
        "means-demo.png",
        "means-demo.svg",
        "along-demo.png",
    } <= files.keys()
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

    lost = training(whole, "demo", "MonoLoRA", select_rate(whole, "demo", "MonoLoRA").rate, 2)
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
    assert sum(map(int, re.findall(r"(\d+) in all\.", text))) == len(verdicts)
    for each in verdicts:
        assert each["source"] == "ours"
        assert f"- demo: {each['claim']}: **{each['answer']}**. {each['text']}" in text
    page = files["report.html"].decode()
    for link in [*re.findall(r"\]\((.*?)\)", text), *re.findall(r'href="([^#].*?)"', page)]:
        assert (study.folder / "report" / link).is_file(), link
    assert all(each["text"].replace("'", "&#39;") in page for each in verdicts)
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
    for row in csv.DictReader(files["differences.csv"].decode().splitlines()):
        ours, theirs = (
            next(float(of["mean"]) for of in rows if (of["model"], of["column"]) == (model, row["column"]))
            for model in (row["model"], row["against"])
        )
        assert float(row["mean"]) == pytest.approx(ours - theirs, abs=1e-9), row


def test_records_are_kept_without_weights_and_texts(whole: Study, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    for _ in range(2):  # the second copy replaces the first
        with claim(kept, KIND, "--records") as folder:
            check_records(whole, folder)
            keep_records(whole, folder)
        for link in re.findall(r"\]\((.*?)\)", (kept / "report" / "report.md").read_text()):
            assert (kept / "report" / link).is_file(), link
        files = [path for path in kept.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} == {".md", ".html", ".csv", ".json", ".png", ".svg"}
        assert all(path.read_bytes() == (whole.folder / path.relative_to(kept)).read_bytes() for path in files)
        assert len([path for path in files if path.name == "run.json"]) == len(all_cells(whole))
    (kept / "notes.txt").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    refusals = {
        kept: "notes.txt in it is not of the earlier copy of a study's records",
        tmp_path / "other": "exists and is no copy of a study's records",
        whole.folder: "cannot be replaced: .* is not of the earlier copy of a study's records",
        whole.folder / "report": "exists and is no copy",
    }
    for other, refusal in refusals.items():
        with claim(other, KIND, "--records") as folder, pytest.raises(InputError, match=refusal):
            check_records(whole, folder)


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
        found = select_rate(whole, "demo", adapter)
        assert found.losses == losses
        assert found.rate == min(losses, key=losses.__getitem__) == selected_rates(whole, "demo")[adapter]
        assert found.is_edge  # of two, each is one


def test_adapters_of_a_seed_see_the_same_examples_in_the_same_order(whole: Study) -> None:
    for seed in whole.seeds:
        runs = [
            json.loads((training(whole, "demo", adapter, rate, seed).folder / "run.json").read_text())
            for adapter, rate in selected_rates(whole, "demo").items()
        ]
        own = {"adapter", "activation", "output_dir", "learning_rate", "logging_dir"}
        configs = [{key: value for key, value in run["config"].items() if key not in own} for run in runs]
        assert configs[0] == configs[1]
        assert runs[0]["fingerprints"]["train"] == runs[1]["fingerprints"]["train"]


def test_adapters_that_did_not_see_the_same_are_no_comparison(whole: Study) -> None:
    found = {"demo": {adapter: select_rate(whole, "demo", adapter) for adapter in whole.adapters}}
    said = " ".join(about(whole, found))
    assert "demo: 16 examples, 1 epoch, 4 steps of 4, rank 4" in said
    assert "8 training examples" in said
    path = training(whole, "demo", "MonoLoRA", found["demo"]["MonoLoRA"].rate, 2).folder / "run.json"
    before = path.read_text()
    path.write_text(before.replace('"num_train_epochs": 1.0', '"num_train_epochs": 2.0'))
    try:
        with pytest.raises(InputError, match="demo, seed 2: the adapters did not see the same"):
            about(whole, found)
    finally:
        path.write_text(before)


def test_dry_run_prints_every_command_and_runs_none(
    write_study: Callable[..., Path], study: Study, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert alignment.main(["--config", str(write_study()), "--out", study.out, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert commands == []
    assert not study.folder.exists()
    for cell in all_cells(study):
        assert cell.command in out
    assert "demo: training" in out
    assert "a toy" in out


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("smollm2.yaml", "cpu"),
        ("smollm2.yaml", "gpu"),
        ("smollm2.yaml", "gpu-quick"),
        ("llama2.yaml", None),
        ("keeping.yaml", "sst2"),
        ("keeping.yaml", "dolly"),
        ("keeping.yaml", "aligned"),
        ("keeping.yaml", "gpu"),
        ("keeping.yaml", "llama2"),
        ("silence.yaml", None),
    ],
)
def test_the_studies_that_come_with_the_project_are_whole(name: str, preset: str | None, tmp_path: Path) -> None:
    """Their commands are read by the programs that they are for."""
    study = load(Path(alignment.__file__).with_name(name), preset, str(tmp_path))
    check_commands(study)
    words = [cell.words[0] for cell in all_cells(study)]
    keeping = {"sst2": 10, "dolly": 10, "aligned": 9, "gpu": 11, "llama2": 7}
    adapters, curves = (
        (keeping[str(preset)], 0) if name == "keeping.yaml" else (11, 0) if name == "silence.yaml" else (4, 2)
    )
    datasets = 1 if preset in ("sst2", "dolly") else 2
    assert len(study.datasets) == datasets
    assert words.count("sft") == datasets * adapters * (len(study.learning_rates) + len(study.seeds) - 1)
    assert words.count("eval") == datasets * (1 + curves)
    if name != "silence.yaml":  # a look at settings with one seed, no claim
        assert len(study.seeds) >= 3
        assert len(study.learning_rates) >= 2
