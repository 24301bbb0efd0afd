"""``monolora vision``: all steps, one after the other, from images to the table and the figures."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from sklearn.linear_model import LogisticRegression

from monolora import cli
from monolora.recipes.vision.__main__ import STEPS
from monolora.recipes.vision.command_line import parse
from monolora.recipes.vision.images import load_images
from monolora.recipes.vision.represent import load_representation

TINY = {
    "common": {"device": "cpu", "seeds": [0, 1]},
    "data": {"image_size": 12},
    "pretrain": {
        "epochs": 2, "batch_size": 16, "warmup_epochs": 1, "width": 4, "projector_hidden": 32, "projector_out": 16,
    },
    "sae": {"k": 4, "epochs": 3, "batch_size": 16},
    "probe": {"epochs": 4, "batch_size": 16, "label_seeds": 2, "noise_rates": [0, 0.5, 0.9]},
    "finetune": {"epochs": 2, "batch_size": 16, "fractions": [0.5, 1.0], "noise_rates": [0.4]},
    "consistency": {"images": 3, "dimensions": 2},
}  # fmt: skip


def _config(folder: Path, **data: object) -> Path:
    sections = {name: dict(values) for name, values in TINY.items()}
    sections["data"] |= data
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(sections.pop("common") | {"out": str(folder / "out")} | sections))
    return path


def test_all_steps_and_again(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = _config(tmp_path, dataset=str(shapes))
    assert cli.main(["vision", "all", "--config", str(config)]) == 0
    first = capsys.readouterr()
    assert first.err == ""
    assert [line for line in first.out.splitlines() if line.startswith("── ")] == [f"── {step}" for step in STEPS]
    out = tmp_path / "out"
    rows = list(csv.DictReader((out / "table1.csv").read_text().splitlines()))
    assert {row["representation"] for row in rows} >= {"simclr", "sae", "ncl"}
    assert len(list((out / "figures").glob("*.png"))) == len(list((out / "figures").glob("*.svg"))) == 9
    assert not list(out.rglob(".*"))  # nothing half written is left

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    assert cli.main(["vision", "all", "--config", str(config)]) == 0
    again = capsys.readouterr().out
    assert again.count("before") == 4 + 2 + 6 + 2 + 6  # encoders, autoencoders, probes, finetunings, consistencies
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.json")} == times


def test_a_table_is_traced_to_its_settings(shapes: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, dataset=str(shapes))
    for step in ("pretrain", "probe"):
        assert cli.main(["vision", step, "--config", str(config), "--seeds", "3"]) == 0
    record = json.loads((tmp_path / "out" / "probe" / "ncl-3.json").read_text())
    assert record["settings"]["data"]["dataset"] == str(shapes)
    assert record["provenance"]["versions"]["torch"] == torch.__version__


def test_real_images_from_the_hubs_layout(mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = _config(
        tmp_path, dataset=str(mirror / "uoft-cs/cifar100"), label_column="fine_label", classes=3, per_class=16,
        image_size=32,
    )  # fmt: skip
    for step in ("pretrain", "probe"):
        assert cli.main(["vision", step, "--config", str(config), "--seeds", "0"]) == 0
    assert "ncl-0, ce: " in capsys.readouterr().out

    settings = parse(["--config", str(config)], "probe")
    images = load_images(settings.data, torch.device("cpu")).val.pixels_N3SS
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in ("simclr", "ncl"):
        representation = load_representation(settings.common, name, 0, torch.device("cpu"))
        with torch.inference_mode():
            real, drawn = (representation.of_pixels(each) for each in (images, noise))
        # half of both teaches a classifier to tell the other half apart
        features, kinds = torch.cat([real, drawn]), torch.tensor([0, 1]).repeat_interleave(len(images))
        told = LogisticRegression(max_iter=2000).fit(features[::2], kinds[::2]).score(features[1::2], kinds[1::2])
        assert told > 0.75, name  # by chance 0.5, give or take 0.03


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["probes"], "Unknown step 'probes'; choose one of pretrain, .* Did you mean probe?"),
        (["--config", "x"], "Which step? It comes before the flags: monolora vision pretrain | sae"),
        (["all", "--epochs", "3"], "Unknown flag --epochs."),
        (["pretrain"], "Where to? Give the folder of the runs with --out"),
        (["probe", "--out", "o", "--noise-rates", "0,1.2"], "--noise-rates must be within 0 and 1, got 1.2."),
        (["pretrain", "--out", "o", "--methods", "moco"], "--methods takes simclr, ncl, each once; got moco."),
        (["pretrain", "--out", "o", "--epochs", "many"], "Argument --epochs: invalid int value: 'many'. See --help."),
    ],
)
def test_what_cannot_be(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["vision", *words]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert all(part in line for part in message.split(".* "))
    assert line.count("\n") == 1


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["vision"]) == 2
    assert cli.main(["vision", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{step} " in out for step in (*STEPS, "all"))


def test_without_its_library(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    assert cli.main(["vision", "pretrain", "--out", "o"]) == 2
    assert capsys.readouterr().err == (
        "error: pytorch-optimizer is not installed. Run: pip install 'monolora[vision]'\n"
    )
