"""``monolora vision``: all steps, one after the other, from images to the table and the figures."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from monolora import cli
from monolora.recipes.vision.__main__ import STEPS
from monolora.recipes.vision.augment import Augment
from monolora.recipes.vision.features import Encoder
from monolora.recipes.vision.images import load_images
from monolora.recipes.vision.settings import Data

TINY = {
    "common": {"device": "cpu", "seeds": [0, 1]},
    "data": {"image_size": 12},
    "pretrain": {
        "epochs": 2, "batch_size": 16, "warmup_epochs": 1, "width": 8, "projector_hidden": 32, "projector_out": 16,
    },
    "sae": {"k": 4, "epochs": 3, "batch_size": 16},
    "probe": {"epochs": 4, "batch_size": 16, "label_seeds": 2, "noise_rates": [0, 0.5, 0.9], "augment": False},
    "finetune": {"epochs": 2, "batch_size": 16, "fractions": [0.5, 1.0], "noise_rates": [0.4]},
    "consistency": {"images": 3, "dimensions": 2},
}  # fmt: skip


def _config(folder: Path, **data: object) -> Path:
    sections = {name: dict(values) for name, values in TINY.items()}
    sections["data"] |= data
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(sections.pop("common") | {"out": str(folder / "out")} | sections))
    return path


class Labelled(NamedTuple):
    """Images with their classes: ``uint8``, ``(N, 3, S, S)``, and ``int64``."""

    pixels_N3SS: torch.Tensor
    labels_N: torch.Tensor


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

    assert cli.main(["vision", "consistency", "--config", str(config)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"Next: monolora vision table1 --config {config} --out {out}"
    assert cli.main(last.split()[2:]) == 0


def test_a_table_is_traced_to_its_settings(shapes: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, dataset=str(shapes))
    for step in ("pretrain", "probe"):
        assert cli.main(["vision", step, "--config", str(config), "--seeds", "3"]) == 0
    record = json.loads((tmp_path / "out" / "probe" / "ncl-3.json").read_text())
    assert record["settings"]["data"]["dataset"] == str(shapes)
    assert record["provenance"]["versions"]["torch"] == torch.__version__


@pytest.fixture
def cifar100(mirror: Path) -> dict[str, Labelled]:
    """Of classes 0, 1 and 2 of CIFAR-100: the first 16 training images of each and all test images, read by PIL."""
    splits = {}
    for split, count in (("train", 16), ("test", 100)):
        files = sorted((mirror / "uoft-cs/cifar100/data").glob(f"{split}-*.parquet"))
        rows = pandas.concat(pandas.read_parquet(file, columns=["img", "fine_label"]) for file in files)
        rows = rows[rows.fine_label < 3]
        rows = rows[rows.groupby("fine_label").cumcount() < count]
        pictures = [np.asarray(Image.open(io.BytesIO(encoded["bytes"]))) for encoded in rows.img]
        pixels_N3SS = torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2))
        splits[split] = Labelled(pixels_N3SS, torch.tensor(rows.fine_label.to_numpy()))
    return splits


def test_real_images_from_the_hubs_layout(
    cifar100: dict[str, Labelled],
    mirror: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pretraining augments, and the encoders are probed on, the very pixels that PIL decodes from the files."""
    augmented, seen = [], []
    augment, forward = Augment.__call__, Encoder.forward

    def spied_augment(self: Augment, pixels_B3SS: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        augmented.extend(pixels_B3SS.clone())
        return augment(self, pixels_B3SS, generator)

    def spied_forward(self: Encoder, images_B3SS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((255 * (images_B3SS * self.std + self.mean)).contiguous())
        return forward(self, images_B3SS)

    monkeypatch.setattr(Augment, "__call__", spied_augment)
    monkeypatch.setattr(Encoder, "forward", spied_forward)
    config = _config(
        tmp_path, dataset=str(mirror / "uoft-cs/cifar100"), label_column="fine_label", classes=3, per_class=16,
        image_size=32,
    )  # fmt: skip
    train, test = cifar100["train"].pixels_N3SS, cifar100["test"].pixels_N3SS
    assert cli.main(["vision", "pretrain", "--config", str(config), "--seeds", "0"]) == 0
    counts = Counter(pixels.numpy().tobytes() for pixels in augmented)
    assert counts.keys() == {pixels.numpy().tobytes() for pixels in train}
    assert len(set(counts.values())) == 1  # each as often as another
    seen.clear()
    assert cli.main(["vision", "probe", "--config", str(config), "--seeds", "0"]) == 0
    for split in (train, test):
        inputs = [batch for batch in seen if batch.shape == split.shape]
        assert sum(torch.allclose(batch, split.float(), rtol=0, atol=0.01) for batch in inputs) >= 2  # of both encoders
    assert "ncl-0, ce: " in capsys.readouterr().out


def test_real_images_have_their_own_labels(cifar100: dict[str, Labelled], mirror: Path) -> None:
    """The classes are apart, in means over 8 x 8 pixels, as they never are under labels that are shuffled."""
    settings = Data(
        dataset=str(mirror / "uoft-cs/cifar100"), label_column="fine_label", classes=3, per_class=16, image_size=32
    )
    data = load_images(settings, torch.device("cpu"))
    for images, expected in zip(data, cifar100.values(), strict=True):
        assert torch.equal(images.pixels_N3SS, expected.pixels_N3SS)
        assert torch.equal(images.labels_N, expected.labels_N)

    x_ND = F.avg_pool2d(data.val.pixels_N3SS.double(), 8).flatten(1)
    x_ND -= x_ND.mean(0)

    def apart(labels_N: torch.Tensor) -> float:
        """The share of the variance that is between classes."""
        of_classes = [x_ND[labels_N == label] for label in range(3)]
        return float(sum(len(z_nD) * z_nD.mean(0).square().sum() for z_nD in of_classes) / x_ND.square().sum())

    generator, labels_N = torch.Generator().manual_seed(0), data.val.labels_N
    shuffled = [apart(labels_N[torch.randperm(300, generator=generator)]) for _ in range(100)]
    assert apart(labels_N) > np.mean(shuffled) + 10 * np.std(shuffled)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["probes"], "Unknown step 'probes'; choose one of pretrain, .* Did you mean probe?"),
        (["--config", "x"], "Which step? It comes before the flags: monolora vision pretrain | sae"),
        (["all", "--epochs", "3"], "Unknown flag --epochs."),
        (["pretrain"], "Where to? Give the folder of the runs with --out"),
        (["probe", "--out", "o", "--noise-rates", "0,1.2"], "--noise-rates must be at least 0 and at most 1, got 1.2."),
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
