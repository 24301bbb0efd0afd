"""A study whose rows keep the base, on tiny models: what its report has beside that of others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monolora.errors import InputError
from monolora.recipes.study import alignment
from monolora.recipes.study.claims import _title
from monolora.recipes.study.plan import all_cells
from monolora.recipes.study.report import write_report
from monolora.recipes.study.results import of_dataset
from monolora.recipes.study.settings import load
from tests.support.inline import run_inline

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _embedded_prompts_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In this process, and with a cache of the test's own."""
    run_inline(monkeypatch)
    monkeypatch.delenv("MONOLORA_DATA", raising=False)
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path / "cache"))


def test_a_study_of_what_keeps_the_base(
    write_study: Callable[..., Path],
    study_content: dict[str, Any],
    commands: list[list[str]],
    tmp_path: Path,
) -> None:
    anchors = {"keep_samples": 20, "keep_answer_tokens": 3}
    quick = study_content["presets"]["quick"]
    demo = quick["datasets"]["demo"]
    suite = study_content["eval"]["suite"]
    path = write_study(
        adapters={
            **study_content["adapters"],
            "LoRA+replay": {"adapter": "lora", "keep": ["replay:0.4"], **anchors},
            "MonoLoRA+kl": {"adapter": "monolora", "keep": ["kl"], **anchors},
        },
        learning_rates=[0.02],
        rivals=["LoRA+replay"],
        seconds=True,
        targets={"demo": {"questions/drift": 0.5, "chat/silent": 50}},
        presets={
            "quick": {
                **{key: value for key, value in quick.items() if key != "curve"},
                "datasets": {"demo": demo | {"eval": demo["eval"] | {"drift_sets": [*suite, "chat"]}}},
            }
        },
    )  # fmt: skip
    assert alignment.main(["--config", str(path), "--out", str(tmp_path / "out")]) == 0
    study = load(path, out=str(tmp_path / "out"))
    assert len(commands) == len(all_cells(study)) == 4 * 2 + 1
    report = study.folder / "report"
    text = (report / "report.md").read_text()
    assert "in the same order for the same steps but for LoRA+replay, which read answers of the base" in text
    assert "![task score against drift of demo](kept-demo.png)" in text
    assert (report / "kept-demo.png").is_file()
    columns = {values.column.id: values for values in of_dataset(study, "demo")}
    verdicts = json.loads((report / "verdicts.json").read_text())
    aimed = [(row["model"], row["column"], row["target"]) for row in verdicts if row["target"] is not None]
    models = ("MonoLoRA", "LoRA+replay")
    assert aimed == [
        *((model, "questions/drift", 0.5) for model in models), *((model, "chat/silent", 50) for model in models)
    ]  # fmt: skip
    assert len(re.findall(r"\n- demo: .*\*\*", text)) == len(verdicts)
    for name in ("chat/drift", "questions/silent", "training/seconds"):
        assert _title(columns[name]) in text
    assert columns["training/seconds"].by_model["LoRA"].shape == (2, 1)
    assert columns["chat/silent"].by_model["LoRA+replay"].max() == 0

    (record,) = study.folder.glob("demo/LoRA+replay/lr-0.02/seed-2/run.json")
    record.write_text(record.read_text().replace('"epoch": 1.0', '"epoch": 0.5'))
    with pytest.raises(InputError, match="demo, seed 2: the adapters did not see the same examples"):
        write_report(study)


def test_a_base_that_the_study_makes(
    write_study: Callable[..., Path],
    study_content: dict[str, Any],
    commands: list[list[str]],
    tmp_path: Path,
) -> None:
    """It is made first, from the study's model; its entry takes the rates of another, and its base is its own."""
    quick = {key: value for key, value in study_content["presets"]["quick"].items() if key != "curve"}
    demo = quick["datasets"]["demo"]
    demo = demo | {"eval": demo["eval"] | {"refusal_margin": 4, "coherence": 3}}
    aligned = {"refuse": ["refusals"], "answer": ["chat"], "refuse_samples": 24, "answer_samples": 24}
    entry = demo | {"task": "demo", "base": "aligned", "rates_of": "demo"}
    path = write_study(
        bases={"aligned": aligned | {"answer_tokens": 3}},
        presets={"quick": quick | {"datasets": {"demo": demo, "demo-aligned": entry}}},
    )
    words = ["--config", str(path), "--out", str(tmp_path / "out")]
    assert alignment.main(words) == 0
    study = load(path, out=str(tmp_path / "out"))
    assert len(commands) == len(all_cells(study)) == 1 + 2 * (2 + 1) + 2 * 2 + 2
    made = str(study.folder / "aligned")
    assert commands[0][0] == "align"
    used = [command[command.index("--model") + 1] for command in commands[1:]]
    assert [model == made for model in used] == ["demo-aligned" in " ".join(command) for command in commands[1:]]
    assert used.count(made) == 5
    columns = {values.column.id: values for values in of_dataset(study, "demo-aligned")}
    assert {"questions/margin", "questions/base-nll"} <= columns.keys()
    assert columns["questions/margin"].by_model["LoRA"].shape == (2, 4)
    base = {
        name: {v.column.id: v for v in of_dataset(study, name)}["questions/margin"].by_model for name in study.datasets
    }
    assert (base["demo"]["base"] != base["demo-aligned"]["base"]).any()
    assert "demo-aligned: task demo, on the base aligned" in (study.folder / "report" / "report.md").read_text()
    commands.clear()
    assert alignment.main(words) == 0
    assert commands == []


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"base": "alinged"}, "Unknown base of other 'alinged'; choose one of aligned. Did you mean aligned"),
        ({"rates_of": "dmo"}, "Unknown rates_of of other 'dmo'; choose one of demo"),
        ({"rates_of": "other"}, "Unknown rates_of of other 'other'"),
        ({"bse": "aligned"}, "Unknown key in .* 'bse'"),
    ],
)
def test_entries_that_cannot_be(
    write_study: Callable[..., Path], study_content: dict[str, Any], entry: dict[str, str], said: str
) -> None:
    quick = study_content["presets"]["quick"]
    datasets = quick["datasets"] | {"other": quick["datasets"]["demo"] | entry}
    with pytest.raises(InputError, match=said):
        load(write_study(bases={"aligned": {}}, presets={"quick": quick | {"datasets": datasets}}))
    with pytest.raises(InputError, match="bases: demo is a folder of the study already"):
        load(write_study(bases={"demo": {}}))
