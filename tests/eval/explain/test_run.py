"""``monolora explain`` from end to end on tiny adapters: its files, its messages, and its numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from monolora import cli
from monolora.adapters import load_adapted
from monolora.data.scoring import label_likelihoods
from monolora.eval.explain.text_sets import load
from monolora.explain import Layout, collect
from monolora.inference import Inference
from monolora.units import UnitName
from tests.support.evaluated import Evaluated

Explain = Callable[..., tuple[int, str, list[str]]]

QUICK = ("--dtype", "float32", "--max-texts", "24", "--ablate", "2", "--ablation-prompts", "6", "--batch-size", "8")


@pytest.fixture
def explain(capsys: pytest.CaptureFixture[str]) -> Explain:
    """``explain(*words)``: status, output, and lines of stderr without progress bars."""

    def run(*words: Any) -> tuple[int, str, list[str]]:
        status = cli.main(["explain", *map(str, words)])
        out, err = capsys.readouterr()
        return status, out, [line for line in err.splitlines() if line.startswith("error")]

    return run


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    rows = [{"prompt": f"How do I make {what} {k}?", "label": what} for k in range(9) for what in ("tea", "a boat")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(evaluated: Evaluated, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MonoLoRA explained on two data sets."""
    out = tmp_path_factory.mktemp("explained") / "out"
    words = ["--dataset", "demo", "--dataset", str(questions), "--contrast", "demo:correct", "demo:wrong"]
    words += ["--contrast", "demo", str(questions), "--contrast", f"{questions}:tea", f"{questions}:a boat"]
    assert cli.main(["explain", str(evaluated.mono), *words, *QUICK, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def units(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "features.parquet").set_index("unit")


def test_the_table_has_what_a_pass_of_the_library_finds(evaluated: Evaluated, units: pd.DataFrame) -> None:
    model, tokenizer = load_adapted(str(evaluated.mono), dtype=torch.float32)
    text_set = load("demo", 24)
    texts = list(text_set.texts(tokenizer, text_set.groups))
    found = collect(model, texts, groups=2, pad_token_id=tokenizer.pad_token_id, batch_size=3)
    assert [UnitName.parse(name) for name in units.index] == Layout.of(model).units
    assert units["demo.firing_rate"].to_numpy() == pytest.approx(found.firing)
    assert units["demo.max"].to_numpy() == pytest.approx(found.max, rel=1e-4)
    assert units["demo.effect"].to_numpy() == pytest.approx(found.effect, rel=1e-4)
    first = units["demo.strongest_contexts"].iloc[0][0]
    assert first["text"] == int(found.contexts[0].number_UK[0, 0])
    assert first["value"] == pytest.approx(float(found.contexts[0].value_UK[0, 0]), rel=1e-4)
    assert first["activations"][first["peak"]] == pytest.approx(first["value"])
    example = text_set.examples[first["text"]]
    assert first["label"] == example.response
    assert "".join(first["tokens"]) in tokenizer.decode(text_set.ids(first["text"], tokenizer))


def test_consistency_is_that_of_the_strongest_texts(evaluated: Evaluated, units: pd.DataFrame) -> None:
    """One forward a text, mean activations sorted, labels counted."""
    model, tokenizer = load_adapted(str(evaluated.mono), dtype=torch.float32)
    text_set = load("demo", 24)
    rows = []
    for text in text_set.texts(tokenizer, text_set.groups):
        found = collect(model, [text], groups=2, pad_token_id=0)
        rows.append(found.mean)
    means = np.stack(rows)
    labels = np.array(text_set.groups)
    for place, name in enumerate(units.index):
        if (means[:, place] > 0).all():  # all 24 texts are the strongest ones
            share = max(np.mean(labels), 1 - np.mean(labels))
            assert units.loc[name, "demo.strongest_consistency"] == pytest.approx(share)
        else:
            assert np.isnan(units.loc[name, "demo.strongest_consistency"])
        live = np.abs(means[:, place]) > 1e-5
        if live.any():
            expected = np.bincount(labels[live], minlength=2).max() / live.sum()
            assert units.loc[name, "demo.consistency"] == pytest.approx(expected)


def test_right_and_wrong_answers_are_told_apart(evaluated: Evaluated, folder: Path, units: pd.DataFrame) -> None:
    model, tokenizer = load_adapted(str(evaluated.mono), dtype=torch.float32)
    text_set = load("demo", 24)
    inference = Inference(model=model, tokenizer=tokenizer, batch_size=4)
    likelihoods = label_likelihoods(inference, list(text_set.examples), text_set.task_labels)
    right = [
        max(each, key=each.__getitem__) == row.response
        for each, row in zip(likelihoods, text_set.examples, strict=True)
    ]
    assert 0 < sum(right) < 24
    means = [collect(model, [text], pad_token_id=0).mean for text in text_set.texts(tokenizer, [-1] * 24)]
    for place, name in enumerate(units.index):
        of_right = [mean[place] for mean, is_right in zip(means, right, strict=True) if is_right]
        of_wrong = [mean[place] for mean, is_right in zip(means, right, strict=True) if not is_right]
        wins = [(a > b) + (a == b) / 2 for a in of_right for b in of_wrong]
        # the table's is of means in bins of a 64th of an octave, in which near ones are tied
        assert units.loc[name, "contrast.demo:correct~demo:wrong.auc"] == pytest.approx(np.mean(wins), abs=0.05)


def test_the_records_and_the_page_are_there(folder: Path, questions: Path, units: pd.DataFrame) -> None:
    record = json.loads((folder / "run.json").read_text())
    assert [(each["name"], each["texts"]) for each in record["datasets"]] == [("demo", 24), (str(questions), 18)]
    assert record["method"] == "MonoLoRA"
    assert record["made"]["settings"]["max_texts"] == 24
    assert record["units"] == len(units) == 16
    page = (folder / "explorer.html").read_text()
    assert "Content-Security-Policy" in page
    assert units["logits.how"].notna().any()
    assert units["ablation.demo.accuracy"].notna().sum() == 2
    assert units[f"ablation.{questions}.kl.low"].notna().sum() == 2
    assert [len(changes) for changes in record["ablations"]["units"].values()] == [4, 4]
    assert [each["id"] for each in record["ablations"]["measures"]][:2] == ["demo.kl", "demo.accuracy"]
    assert {len(record["made"][key]) for key in ("adapter_fingerprint", "model_fingerprint")} == {16}
    assert not (folder / "logs").exists()


def test_compare_explains_adapters_and_takes_what_is_explained(
    explain: Explain, evaluated: Evaluated, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "compared"
    words = ("--compare", f"lora={evaluated.lora}", f"mono={evaluated.mono}", "--dataset", "demo")
    status, printed, errors = explain(*words, *QUICK, "--ablate", "0", "--logit-contexts", "0", "--out", out)
    assert (status, errors) == (0, [])
    assert "mono" in printed
    assert (out / "comparison.html").is_file()
    lora = pd.read_parquet(out / "lora" / "features.parquet")
    assert (lora["demo.firing_rate"] == 1).all()
    assert (lora["demo.min"] < 0).any()
    assert "demo.lowest_consistency" in lora
    both = explain("--compare", f"lora={out / 'lora'}", f"mono={folder}", "--out", tmp_path / "again")
    assert both[0] == 0
    assert not (tmp_path / "again" / "lora").exists()
    again = explain("--compare", f"lora={out / 'lora'}", f"mono={folder}", "--out", tmp_path / "again")
    assert again[0] == 2
    assert "--overwrite" in again[2][0]


def test_which_units_are_ablated(explain: Explain, evaluated: Evaluated, tmp_path: Path) -> None:
    words = ("--dataset", "demo", "--logit-contexts", "0", *QUICK)
    for number, (choice, column) in enumerate(
        (
            (("--ablate-by", "information"), lambda units: units["demo.information"]),
            (
                ("--ablate-by", "contrast"),
                lambda units: (units["contrast.demo:positive~demo:negative.auc"] - 0.5).abs(),
            ),
            (
                ("--ablate-units", "0.self_attn.v_proj:2"),
                lambda units: units.index.str.endswith("0.self_attn.v_proj:2"),
            ),
        )
    ):
        out = tmp_path / str(number)
        assert explain(evaluated.mono, *words, *choice, "--out", out)[0] == 0
        units = pd.read_parquet(out / "features.parquet").set_index("unit")
        ablated = units["ablation.demo.kl"].notna()
        strength = pd.Series(column(units), index=units.index).astype(float)
        assert ablated.sum() == (1 if "units" in choice[0] else 2)
        assert strength[ablated].min() >= strength[~ablated].max()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Where to"),
        (("--out", "x"), "Give one adapter folder"),
        (("MONO", "--out", "x", "--dataset", "sst3"), "sst3"),
        (("MONO", "--out", "x", "--contexts", "0"), "--contexts must be at least 1"),
        (("MONO", "--out", "x", "--dataset", "demo", "--dataset", "demo"), "named twice"),
        (("MONO", "--out", "x", "--contrast", "demo:happy", "demo"), "Unknown label of demo"),
        (("MONO", "--out", "x", "--contrast", "dem", "demo"), "Did you mean"),
        (("MONO", "--out", "x", "--compare", "a=b", "c=d"), "Give one adapter folder"),
        (("--out", "x", "--compare", "a"), "is not NAME=PATH"),
        (("--out", "x", "--compare", "../a=MONO", "b=MONO"), "cannot be a folder's name"),
        (("MONO", "--out", "x", "--dataset", "demo-answers-last"), "Take one of them"),
        (("MONO", "--out", "x", "--dataset", "dolly.jsonl", "--ablate-by", "information"), "dolly.jsonl"),
        (("MONO", "--out", "x", "--dataset", "QUESTIONS", "--label-column", "no", "--ablate-by", "information"), "lab"),
        (("MONO", "--out", "x", "--dataset", "QUESTIONS", "--label-column", "no", "--ablate-by", "contrast"), "contr"),
        (("MONO", "--out", "MONO"), "which the explanation is made from"),
        (("--out", "x", "--compare", "a=MONO"), "two adapters or more"),
        (("--out", "x", "--compare", "a=MONO", "a=MONO"), "is taken"),
        (("nowhere", "--out", "x"), "holds no adapter"),
        (("MONO", "--out", "x", "--judges", "nobody"), "Unknown judge"),
        (("MONO", "--out", "x", "--datset", "demo"), "--dataset"),
        (("MONO", "--out", "x", "--ablate-units", "9.self_attn.v_proj:0", *QUICK), "Unknown module"),
    ],
)
def test_what_cannot_be_is_one_line(
    explain: Explain,
    evaluated: Evaluated,
    questions: Path,
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {"MONO": evaluated.mono, "QUESTIONS": questions}
    for name, path in paths.items():
        words = tuple(word.replace(name, str(path)) for word in words)
    status, _, errors = explain(*words)
    assert status == 2
    assert len(errors) == 1
    assert said in errors[0]
    assert not (tmp_path / "x").exists()


def test_units_that_are_not_finite_are_named(explain: Explain, evaluated: Evaluated, tmp_path: Path) -> None:
    """Finite weights, whose products overflow."""
    shutil.copytree(evaluated.mono, tmp_path / "broken")
    file = tmp_path / "broken" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "layers.1.self_attn.v_proj.monolora_A" in name)
    tensors[name].fill_(3e38)
    save_file(tensors, file, metadata={"format": "pt"})
    status, _, errors = explain(tmp_path / "broken", *QUICK, "--out", tmp_path / "out")
    assert status == 2
    assert "model.layers.1.self_attn.v_proj are not finite" in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_half(
    explain: Explain, evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *args: Any, **kwargs: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    words = ("--ablate", "0", "--logit-contexts", "0")
    status, _, errors = explain(evaluated.mono, *QUICK, *words, "--out", tmp_path / "out")
    assert status == 1
    assert "No space left" in errors[0]
    assert "--out" in errors[0]
    assert [*tmp_path.iterdir()] == []


def test_the_folder_is_looked_at_before_anything_is_read(explain: Explain, evaluated: Evaluated, folder: Path) -> None:
    status, _, errors = explain(evaluated.mono, *QUICK, "--out", folder)
    assert (status, len(errors)) == (2, 1)
    assert "--overwrite" in errors[0]
    status, _, errors = explain(evaluated.mono, *QUICK, "--out", folder / "explorer.html")
    assert (status, len(errors)) == (2, 1)
    assert "Take another folder" in errors[0]
    # what trained the adapter has a run.json too
    status, _, errors = explain(evaluated.mono, *QUICK, "--overwrite", "--out", evaluated.mono.parent)
    assert (status, len(errors)) == (2, 1)
    assert (evaluated.mono / "adapter_config.json").is_file()


def test_an_explanation_is_replaced_whole(explain: Explain, evaluated: Evaluated, tmp_path: Path) -> None:
    words = (*QUICK, "--ablate", "0", "--logit-contexts", "0", "--out", tmp_path / "out")
    assert explain(evaluated.mono, *words, "--dataset", "demo")[0] == 0
    (tmp_path / "out" / "note").write_text("mine")
    status, _, errors = explain(evaluated.lora, *words, "--dataset", "demo", "--overwrite")
    assert (status, "note in it is not of the earlier explanation" in errors[0]) == (2, True)
    (tmp_path / "out" / "note").unlink()
    assert explain(evaluated.lora, *words, "--dataset", "demo", "--overwrite")[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"features.parquet", "explorer.html", "run.json"}
    assert json.loads((tmp_path / "out" / "run.json").read_text())["method"] == "LoRA"


def test_a_comparison_replaces_nothing_of_others(
    explain: Explain, evaluated: Evaluated, folder: Path, tmp_path: Path
) -> None:
    """Nor what it is made from; all folders are looked at before the first adapter is explained."""
    pair = ("--compare", f"a={evaluated.mono}", f"b={folder}", *QUICK, "--overwrite")
    (tmp_path / "comparison.html").write_text("mine")
    status, _, errors = explain(*pair, "--out", tmp_path)
    assert (status, "comparison.html exists and does not belong to a comparison" in errors[0]) == (2, True)
    (tmp_path / "comparison.html").unlink()
    shutil.copytree(evaluated.mono, tmp_path / "b")
    status, _, errors = explain("--compare", f"a={evaluated.mono}", f"b={evaluated.mono}", *QUICK, "--out", tmp_path)
    assert (status, f"{tmp_path}/b exists and is no explanation" in errors[0]) == (2, True)
    assert not (tmp_path / "a").exists()
    shutil.copytree(folder, tmp_path / "a")
    status, _, errors = explain(
        "--compare", f"a={evaluated.mono}", f"c={tmp_path / 'a'}", *QUICK, "--overwrite", "--out", tmp_path
    )
    assert (status, "which the explanation is made from" in errors[0]) == (2, True)


def test_data_sets_with_other_numbers_of_labels_are_contrasted(
    explain: Explain, evaluated: Evaluated, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their bins differ where there is little room; the contrast is then made in the coarser ones."""
    rows = [{"prompt": f"Write about {what} {k}.", "label": what} for k in range(4) for what in "abcdefgh"]
    many = tmp_path / "many.jsonl"
    many.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--dataset", questions, "--dataset", many, *QUICK, "--ablate", "0", "--logit-contexts", "0")
    auc = {}
    for room in (2**26, 2**15):
        monkeypatch.setattr("monolora.explain.contexts.ROOM", room)
        assert explain(evaluated.mono, *words, "--out", tmp_path / str(room))[0] == 0
        units = pd.read_parquet(tmp_path / str(room) / "features.parquet")
        auc[room] = units[f"contrast.{many}~{questions}.auc"].to_numpy()
    assert auc[2**15] == pytest.approx(auc[2**26], abs=0.1)
    assert np.abs(auc[2**26] - 0.5).max() > 0.2
