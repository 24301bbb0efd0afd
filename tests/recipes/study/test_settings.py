"""A study's file: what presets lay over it, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monolora.errors import InputError
from monolora.recipes.study.plan import all_cells, check_commands, curves, evaluation, judges, training
from monolora.recipes.study.settings import Study, load


def test_a_preset_is_laid_over_what_is_shared(write_study: Callable[..., Path], study_content: dict[str, Any]) -> None:
    path = write_study(sft={"lora_r": 4, "bf16": "false"})
    assert load(path).out == "runs/quick"
    presets = study_content["presets"]
    both = {"quick": presets["quick"], "other": presets["quick"] | {"seeds": [5], "sft": {"lora_r": 9}}}
    other = load(write_study(presets=both, sft={"lora_r": 4, "bf16": "false"}), "other")
    assert other.sft == {"lora_r": 9, "bf16": "false"}
    assert (other.seeds, other.out) == ((5,), "runs/other")
    assert other.datasets["demo"].eval == {"task_limit": 4, "drift": 6}


def test_a_preset_has_some_of_what_is_shared(write_study: Callable[..., Path], study_content: dict[str, Any]) -> None:
    """A list in the place of a mapping names what is left of it, in that order; an empty one leaves nothing."""
    adapters = {"a": {"lora_r": 1}, "b": {"lora_r": 2}, "c": {"lora_r": 3}}
    quick = study_content["presets"]["quick"] | {"adapters": ["c", "a"], "judges": [], "curve": None}
    study = load(write_study(adapters=adapters, judges={"judge": {}}, presets={"quick": quick}))
    assert list(study.adapters.items()) == [("c", {"lora_r": 3}), ("a", {"lora_r": 1})]
    assert study.judges == {}
    with pytest.raises(InputError, match=r"Unknown name in .*quick, adapters 'd'; choose one of a, b, c"):
        load(write_study(adapters=adapters, presets={"quick": quick | {"adapters": ["a", "d"]}}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapters": {"LoRA": {}}}, "compares two or more"),
        ({"seeds": [1, 1]}, "seeds: give one or more, each once"),
        ({"learning_rates": []}, "learning_rates: give"),
        ({"seds": [1]}, "Did you mean seeds"),
        ({"presets": {}}, "has no presets"),
        ({"adapters": ["lora", "mono"]}, "must be a mapping"),
        ({"adapters": {"a/b": {}, "c": {}}}, "a/b cannot be a folder's name"),
        ({"margin": {"sst3": 1}}, "Unknown key in margin 'sst3'"),
        ({"margin": {"flagged": "x"}}, "margin: flagged: input should be a valid number, got 'x'"),
        ({"margin": "x"}, "margin must be a mapping, got 'x'"),
        ({"margin": ["flagged", 3]}, "margin must be a mapping"),
        ({"margin": {"flagged": -1}}, "margin, flagged: must be 0 or more"),
        ({"margin": {"flagged": float("nan")}}, "margin, flagged: must be 0 or more"),
        ({"rivals": "LoRA"}, "rivals must be a list, got 'LoRA'"),
        ({"rivals": ["MonoLoRA"]}, "Unknown adapter in rivals 'MonoLoRA'"),
        ({"targets": {"sst3": {}}}, "Unknown data set in targets 'sst3'"),
        ({"targets": {"demo": 3}}, "demo must be a mapping, got 3"),
        ({"targets": {"demo": {"x": "y"}}}, "targets: demo.x: input should be a valid number, got 'y'"),
        ({"seconds": "x"}, "seconds: "),
        ({"margin": {"flagged": True}}, "margin: flagged: input should be a valid number"),
        ({"seeds": ["one", 2]}, "seeds: 0: input should be a valid integer, got 'one'"),
        ({"seeds": [1.5]}, "seeds: 0: input should be a valid integer, got 1.5"),
        ({"seeds": 3}, "seeds must be a list, got 3"),
        ({"learning_rates": ["fast"]}, "learning_rates: 0: input should be a valid number, got 'fast'"),
        ({"learning_rates": [0]}, "learning_rates: each must be a number above 0"),
        ({"model": ["a"]}, "model must be a text, got"),
        ({"out": {"a": 1}}, "out must be a text, got"),
        ({"model": None}, "model is missing"),
        ({"sft": "lora_r"}, "sft must be a mapping, got 'lora_r'"),
        ({"eval": [1]}, "eval must be a mapping"),
        ({"judges": "own"}, "judges must be a mapping"),
        ({"presets": [1]}, "presets must be a mapping"),
    ],
)
def test_what_cannot_be(write_study: Callable[..., Path], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(write_study(**changes))


def test_presets_and_curves_that_are_none(write_study: Callable[..., Path], study_content: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Did you mean quick"):
        load(write_study(), "qick")
    quick = study_content["presets"]["quick"]
    with pytest.raises(InputError, match="Unknown adapter of curve 'Mono'"):
        load(write_study(presets={"quick": quick | {"curve": {"adapters": ["Mono"]}}}))
    with pytest.raises(InputError, match="datasets is missing"):
        load(write_study(presets={"quick": {}}))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("datasets", {"demo": 3}, "demo must be a mapping"),
        ("datasets", {"demo": {"sft": 3}}, "datasets: demo.sft"),
        ("estimates", "x", "must be a mapping"),
        ("estimates", {"device": "a"}, "parameters is missing"),
        ("curve", {"adapters": "MonoLoRA"}, "must be a list"),
        ("curve", {"adapters": ["MonoLoRA"], "eval": 3}, "curve: eval"),
    ],
)
def test_what_a_preset_cannot_have(
    write_study: Callable[..., Path], study_content: dict[str, Any], key: str, value: Any, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        load(write_study(presets={"quick": study_content["presets"]["quick"] | {key: value}}))


def test_estimates_are_numbers(write_study: Callable[..., Path], study_content: dict[str, Any]) -> None:
    quick = study_content["presets"]["quick"]
    wrong = quick | {"estimates": quick["estimates"] | {"train": "fast"}}
    with pytest.raises(InputError, match="estimates: train: input should be a valid number, got 'fast'"):
        load(write_study(presets={"quick": wrong}))


def test_a_flag_that_its_program_does_not_know_is_named(write_study: Callable[..., Path], tmp_path: Path) -> None:
    for changes, said in (
        ({"sft": {"lora_rank": 8}}, "demo, LoRA, .*: Unknown flag --lora-rank. Did you mean"),
        (
            {"eval": {"suite": ["beavertails"], "limt": 5}},
            "demo, evaluation: Unknown flag --limt. Did you mean --limit",
        ),
        ({"judges": {"own": {"epoch": 2}}}, "own: Unknown flag --epoch. Did you mean --epochs"),
    ):
        with pytest.raises(InputError, match=said):
            check_commands(load(write_study(**changes), out=str(tmp_path / "out")))


def test_commands(study: Study) -> None:
    cell = training(study, "demo", "MonoLoRA", 0.02, 2)
    assert cell.folder == study.folder / "demo" / "MonoLoRA" / "lr-0.02" / "seed-2"
    flags = dict(zip(cell.words[1::2], cell.words[2::2], strict=False))
    assert flags["--seed"] == "2"
    assert "--skip-eval" in cell.words
    found = evaluation(study, "demo", {"LoRA": 0.002, "MonoLoRA": 0.02})
    assert [word for word in found.words if "=" in word] == [
        f"{name}-seed{seed}={training(study, 'demo', name, rate, seed).folder}"
        for name, rate in (("LoRA", 0.002), ("MonoLoRA", 0.02))
        for seed in (1, 2)
    ]
    (curve,) = curves(study, "demo", {"LoRA": 0.002, "MonoLoRA": 0.02})
    assert curve.words[-1] == f"{training(study, 'demo', 'MonoLoRA', 0.02, 1).folder}/checkpoint-*"
    assert list(judges(study)) == []
    folders = [cell.folder for cell in all_cells(study)]
    assert len(set(folders)) == len(folders)


def test_the_own_judge_judges(write_study: Callable[..., Path], tmp_path: Path) -> None:
    asked = ["classifier:own", "classifier:elsewhere/own", "classifier:second", "refusal"]
    changes = {"judges": {"own": {"epochs": 1}, "second": None}, "eval": {"judges": asked}}
    out = tmp_path / "out"
    study = load(write_study(**changes), out=str(out))
    own, second = judges(study)
    assert own.words == ("judge", "--epochs", "1", "--output-dir", str(out / "own"))
    assert second.words == ("judge", "--output-dir", str(out / "second"))
    cell = evaluation(study, "demo", {"LoRA": 0.02})
    given = cell.words[cell.words.index("--judges") + 1]
    assert given == f"classifier:{out / 'own'},classifier:elsewhere/own,classifier:{out / 'second'},refusal"
    assert {own.folder, second.folder} < set(cell.inputs)
    with pytest.raises(InputError, match="demo is a folder of the study already"):
        load(write_study(judges={"demo": {}}))


def test_rows_that_keep_the_base(write_study: Callable[..., Path], tmp_path: Path) -> None:
    """Lists are words of a flag, and a name with a plus is a folder, a row of the evaluation, and a file."""
    kept = {"adapter": "monolora", "keep": ["silence", "replay:0.2"], "keep_prompts": ["chat", "refusals"]}
    plain = {"LoRA": {"adapter": "lora"}, "MonoLoRA": {"adapter": "monolora"}}
    adapters = {**plain, "MonoLoRA+silence": kept, "LoRA+kl": {"adapter": "lora", "keep": "kl"}}
    study = load(write_study(adapters=adapters, rivals=["LoRA+kl"]), out=str(tmp_path / "out"))
    check_commands(study)
    cell = training(study, "demo", "MonoLoRA+silence", 0.02, 2)
    assert cell.folder == study.folder / "demo" / "MonoLoRA+silence" / "lr-0.02" / "seed-2"
    assert cell.command.count("--keep silence replay:0.2 --keep-prompts chat refusals ") == 1
    row, _, folder = evaluation(study, "demo", {"MonoLoRA+silence": 0.02}).words[-1].partition("=")
    assert (row, folder) == ("MonoLoRA+silence-seed2", str(cell.folder))
