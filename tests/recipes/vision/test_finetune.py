"""The program: which runs it selects, what each trains on, and that a stopped program resumes where it was."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monolora.errors import InputError, RunError, exit_status
from monolora.recipes.experiment_steps import read
from monolora.recipes.vision import finetune
from monolora.recipes.vision.features import Encoder, encoder_folder, finetune_file
from monolora.recipes.vision.finetune import Classifier, Curves, Run, Training, main, runs_of
from monolora.recipes.vision.images import ImageData
from monolora.recipes.vision.settings import Finetune, Settings

SIX = [
    Run("ce", 0.5, 0.0, 0), Run("nce", 0.5, 0.0, 0), Run("ce", 1.0, 0.0, 0), Run("nce", 1.0, 0.0, 0),
    Run("ce", 1.0, 0.4, 0), Run("nce", 1.0, 0.4, 0),
]  # fmt: skip


def _runs(settings: Settings, seed: int = 0) -> list[dict[str, Any]]:
    return read(finetune_file(settings.common.out, seed), "")["results"]["runs"]


def _kinds(settings: Settings, seed: int = 0) -> list[Run]:
    return [Run(*(entry[name] for name in Run._fields)) for entry in _runs(settings, seed)]


class Started:
    """What each run of a spied program was given, in their order."""

    def __init__(self) -> None:
        self.indices: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []
        self.weights: list[torch.Tensor] = []
        self.draws: list[torch.Tensor] = []


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Runs are not made, but seen: each has an accuracy of its own."""
    seen = Started()

    def run(self: Training, indices_n: torch.Tensor, labels_N: torch.Tensor) -> Curves:
        seen.indices.append(indices_n)
        seen.labels.append(labels_N)
        seen.weights.append(self.network.linear.weight.detach().clone())
        seen.draws.append(torch.randint(2**62, (3,), generator=self.generator))
        return Curves([0.5], [len(seen.indices) / 100], [1.0])

    monkeypatch.setattr(Training, "run", run)
    return seen


def test_runs_of_the_paper() -> None:
    """Four shares and four noise rates, twice; all images with right labels are in both lists and done once."""
    runs = runs_of(Finetune(noise_rates=(0.0, 0.2, 0.4, 0.6, 0.8)))
    assert len(runs) == len(set(runs)) == 16
    assert all(run.fraction == 1 or run.noise_rate == 0 for run in runs)
    assert Counter((run.fraction, run.noise_rate) for run in runs).most_common(1)[0][1] == 2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"fractions": (0.1,), "noise_rates": ()}, [("ce", 0.1, 0.0), ("nce", 0.1, 0.0)]),
        ({"fractions": (), "noise_rates": (0.3,), "objectives": ("nce",)}, [("nce", 1.0, 0.3)]),
        ({"fractions": (1.0, 1.0), "noise_rates": (0.0,), "objectives": ("ce",)}, [("ce", 1.0, 0.0)]),
    ],
)
def test_runs(settings: dict[str, Any], expected: list[tuple[str, float, float]]) -> None:
    assert runs_of(Finetune(**settings, draws=2)) == [Run(*kind, draw) for draw in (0, 1) for kind in expected]


def test_nothing_to_do_is_refused() -> None:
    with pytest.raises(InputError, match="--fractions and --noise-rates are both empty"):
        runs_of(Finetune(fractions=(), noise_rates=()))


def test_the_record_and_the_lines(
    settings: Settings, make_encoder: Callable[..., Encoder], capsys: pytest.CaptureFixture[str]
) -> None:
    make_encoder("simclr")
    finetune.run(settings)
    runs = _runs(settings)
    assert _kinds(settings) == SIX
    for run in runs:
        for name in ("train_accuracy", "val_accuracy", "train_loss"):
            assert len(run[name]) == 2
            assert all(value >= 0 for value in run[name])
        assert all(18 * value == pytest.approx(round(18 * value)) for value in run["val_accuracy"])  # of 18 images
        trained_on = 24 if run["fraction"] == 0.5 else 48
        assert all(trained_on * v == pytest.approx(round(trained_on * v)) for v in run["train_accuracy"])
        assert run["seconds"] > 0
    lines = capsys.readouterr().out.splitlines()
    starts = [
        "ce, 50 % of the images", "nce, 50 % of the images", "ce, all images", "nce, all images",
        "ce, all images, 40 % wrong labels", "nce, all images, 40 % wrong labels",
    ]  # fmt: skip
    for line, start, run in zip(lines, starts, runs, strict=True):
        train, val = (f"{100 * run[name][-1]:.1f} %" for name in ("train_accuracy", "val_accuracy"))
        assert line == f"simclr-0, {start}: training {train}, validation {val} ({run['seconds']:.0f} s)"


def test_ce_and_nce_start_from_the_same(
    settings: Settings,
    changed: Callable[..., Settings],
    make_encoder: Callable[..., Encoder],
    started: Started,
) -> None:
    make_encoder("simclr")
    finetune.run(changed(settings, "finetune", draws=2))
    assert len(started.indices) == 12
    for given in (started.indices, started.labels, started.weights, started.draws):
        for ce, nce in zip(given[::2], given[1::2], strict=True):
            assert torch.equal(ce, nce)
    # the two draws: of the share, of the wrong labels, of the first weights, of the orders
    assert not torch.equal(started.indices[0], started.indices[6])
    assert not torch.equal(started.labels[4], started.labels[10])
    assert not torch.equal(started.weights[0], started.weights[6])
    assert not torch.equal(started.draws[0], started.draws[6])


def test_what_runs_are_trained_on(
    settings: Settings, data: ImageData, make_encoder: Callable[..., Encoder], started: Started
) -> None:
    make_encoder("simclr")
    finetune.run(settings)
    labels_N = data.train.labels_N
    for run, indices, labels in zip(SIX, started.indices, started.labels, strict=True):
        assert Counter(labels_N[indices].tolist()) == dict.fromkeys(range(3), round(16 * run.fraction))
        assert int((labels != labels_N).sum()) == int(48 * run.noise_rate)


def test_seeds_of_pretraining_draw_each_for_itself(
    settings: Settings, changed: Callable[..., Settings], make_encoder: Callable[..., Encoder], started: Started
) -> None:
    for seed in (0, 3):
        make_encoder("simclr", seed)
    finetune.run(changed(settings, "common", seeds=(0, 3)))
    assert _kinds(settings, 0) == _kinds(settings, 3) == SIX
    assert not torch.equal(started.indices[0], started.indices[6])
    assert not torch.equal(started.labels[4], started.labels[10])
    assert not torch.equal(started.weights[0], started.weights[6])


def test_nothing_is_done_twice(
    settings: Settings,
    changed: Callable[..., Settings],
    make_encoder: Callable[..., Encoder],
    started: Started,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_encoder("simclr")
    finetune.run(settings)
    first = finetune_file(settings.common.out, 0).read_text()
    capsys.readouterr()
    finetune.run(settings)
    assert capsys.readouterr().out == "simclr-0, finetuning: 6 of 6 runs done before\n"
    assert len(started.indices) == 6
    assert finetune_file(settings.common.out, 0).read_text() == first
    finetune.run(changed(settings, "finetune", fractions=(0.5,), noise_rates=(0.4, 0.8)))  # two more
    assert len(started.indices) == 8
    assert _kinds(settings) == [*SIX, Run("ce", 1.0, 0.8, 0), Run("nce", 1.0, 0.8, 0)]
    assert "4 of 6 runs done before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("finetune", {"epochs": 3}), ("finetune", {"learning_rate": 0.1}), ("finetune", {"batch_size": 8}),
        ("finetune", {"weight_decay": 0.0}), ("data", {"per_class": 10}), ("common", {"precision": "bfloat16"}),
    ],
)  # fmt: skip
def test_other_settings_are_done_anew(
    settings: Settings,
    changed: Callable[..., Settings],
    make_encoder: Callable[..., Encoder],
    started: Started,
    section: str,
    values: dict[str, Any],
) -> None:
    make_encoder("simclr")
    finetune.run(settings)
    finetune.run(changed(settings, section, **values))
    assert len(started.indices) == 12
    assert _kinds(settings) == SIX


def test_another_encoder_is_finetuned_anew(
    settings: Settings, make_encoder: Callable[..., Encoder], started: Started
) -> None:
    make_encoder("simclr")
    finetune.run(settings)
    make_encoder("simclr", width=5)
    finetune.run(settings)
    assert len(started.indices) == 12


def test_a_stopped_program_resumes_where_it_was(
    settings: Settings,
    changed: Callable[..., Settings],
    make_encoder: Callable[..., Encoder],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    make_encoder("simclr")
    parts = changed(settings, "finetune", epochs=1)
    whole = changed(parts, "common", out=str(tmp_path / "whole"))
    shutil.copytree(encoder_folder(parts.common.out, "simclr", 0), encoder_folder(whole.common.out, "simclr", 0))
    finetune.run(whole)
    original, count = Training.run, []

    def stopped(self: Training, indices_N: torch.Tensor, labels_N: torch.Tensor) -> Curves:
        count.append(0)
        if len(count) == 4:
            raise KeyboardInterrupt
        return original(self, indices_N, labels_N)

    monkeypatch.setattr(Training, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        finetune.run(parts)
    assert _kinds(parts) == SIX[:3]
    finetune.run(parts)
    assert len(count) == 4 + 3
    without_times = [[{k: v for k, v in run.items() if k != "seconds"} for run in _runs(s)] for s in (whole, parts)]
    assert without_times[0] == without_times[1]


def test_a_loss_that_is_not_finite_names_the_run_and_keeps_the_others(
    settings: Settings, make_encoder: Callable[..., Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_encoder("simclr")
    forward = Classifier.forward
    monkeypatch.setattr(
        Classifier,
        "forward",
        lambda self, images: forward(self, images) * (float("nan") if self.training and self.non_negative else 1),
    )
    with pytest.raises(
        RunError, match=r"^simclr-0, nce, 50 % of the images: the loss is not finite at step 1 of epoch 1\. Lower"
    ):
        finetune.run(settings)
    assert _kinds(settings) == SIX[:1]


def test_too_little_memory_says_what_to_lower(
    settings: Settings, make_encoder: Callable[..., Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_encoder("simclr")

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Training, "run", full)
    with pytest.raises(RunError, match=r"^simclr-0, ce, 50 % of the images: .*memory\. Lower finetune's --batch-size"):
        finetune.run(settings)


def test_a_missing_encoder_is_found_out_before_anything_runs(
    settings: Settings, changed: Callable[..., Settings], make_encoder: Callable[..., Encoder], started: Started
) -> None:
    make_encoder("simclr", 0)
    with pytest.raises(InputError, match=r"simclr-1 has no encoder\. Pretrain first"):
        finetune.run(changed(settings, "common", seeds=(0, 1)))
    assert not started.indices


def test_images_that_are_too_small_for_the_encoder(
    settings: Settings, changed: Callable[..., Settings], make_encoder: Callable[..., Encoder]
) -> None:
    make_encoder("simclr")
    with pytest.raises(InputError, match=r"trained on images of 12 pixels a side, these have 8\. Give --image-size 12"):
        finetune.run(changed(settings, "data", image_size=8))


def test_command_line(
    settings: Settings, make_encoder: Callable[..., Encoder], capsys: pytest.CaptureFixture[str]
) -> None:
    make_encoder("simclr")
    words = ["--out", settings.common.out, "--dataset", settings.data.dataset, "--image-size", "12", "--device", "cpu"]
    chosen = ["--objectives", "nce", "--fractions", "0.25", "--noise-rates", "", "--epochs", "1", "--draws", "2"]
    assert main([*words, *chosen, "--precision", "float32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "simclr-0, nce, 25 % of the images", "simclr-0, nce, 25 % of the images, draw 1",
    ]  # fmt: skip
    assert json.loads(finetune_file(settings.common.out, 0).read_text())["settings"] == {
        "epochs": 1, "batch_size": 256, "learning_rate": 0.05, "weight_decay": 1e-4, "precision": "torch.float32",
    }  # fmt: skip
    assert exit_status(lambda: main([*words, "--fraction", "0.5"])) == 2
    assert capsys.readouterr().err == "error: Unknown flag --fraction. Did you mean --fractions?\n"
