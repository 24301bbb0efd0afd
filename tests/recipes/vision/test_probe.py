"""``monolora vision probe``: its record and weights, what is done again, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from monolora.errors import InputError, RunError
from monolora.recipes.experiment_steps import noisy_labels
from monolora.recipes.vision import probe as program
from monolora.recipes.vision.autoencoder import TopKAutoencoder, save_sae
from monolora.recipes.vision.features import Encoder, encoder_folder, features_of, probe_file
from monolora.recipes.vision.images import ImageData
from monolora.recipes.vision.linear_probe import plain_probe, shuffled
from monolora.recipes.vision.settings import Settings, parse

CPU = torch.device("cpu")
RATES = ("0.0", "0.5", "0.9")


def results_of(settings: Settings, name: str, seed: int = 0) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(probe_file(settings.common.out, name, seed).read_text())["results"]
    return results


def test_record_and_weights_agree(
    settings: Settings, data: ImageData, make_encoder: Callable[..., Encoder], capsys: pytest.CaptureFixture[str]
) -> None:
    make_encoder("simclr")
    make_encoder("ncl")
    program.run(settings)
    lines = capsys.readouterr().out.splitlines()
    named = [line.split(":")[0] for line in lines]
    assert named == ["simclr-0, ce", "simclr-0, sce", "ncl-0, ce", "ncl-0, sce"]
    for name in ("simclr", "ncl"):
        results = results_of(settings, name)
        weights = load_file(probe_file(settings.common.out, name, 0).with_suffix(".safetensors"))
        assert weights["ce.weight"].shape == (3, 2, 3, 16)
        assert weights["sce.bias"].shape == (3, 2, 3)
        assert results["classes"] == ["blue", "green", "red"]
        z_ND, labels = features_of(settings.common, name, 0, data, CPU).val_ND, data.val.labels_N
        for loss in ("ce", "sce"):
            weight, bias = weights[f"{loss}.weight"], weights[f"{loss}.bias"]
            logits = torch.einsum("nd,rscd->rsnc", z_ND / results["scale"], weight) + bias[:, :, None]
            right = (logits.argmax(-1) == labels).float()
            assert list(results["accuracy"][loss]) == list(RATES)
            for index, rate in enumerate(RATES):
                assert results["accuracy"][loss][rate] == pytest.approx(right[index].mean(-1).tolist())
                per_class = [[float(right[index, draw][labels == c].mean()) for c in range(3)] for draw in range(2)]
                assert results["per_class"][loss][rate] == [pytest.approx(shares) for shares in per_class]
        for kind in ("uniform", "gaussian"):
            assert list(results["input_noise"][kind]) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
            assert results["input_noise"][kind]["0.0"] == pytest.approx(results["accuracy"]["ce"]["0.0"])
        assert results["ood"] == {}
        assert results["seconds"] > 0


def test_classifiers_are_those_of_plain_training(
    settings: Settings, data: ImageData, make_encoder: Callable[..., Encoder]
) -> None:
    """Label noise, orders and scale as documented; rebuilt here by a plain loop, for the pretraining seed 3."""
    settings = parse(_words(settings, "--seeds", "3", "--losses", "ce"), "probe")
    make_encoder("ncl", seed=3)
    program.run(settings)
    results = results_of(settings, "ncl", 3)
    weights = load_file(probe_file(settings.common.out, "ncl", 3).with_suffix(".safetensors"))
    x_ND = features_of(settings.common, "ncl", 3, data, CPU).train_ND
    for index, rate in enumerate((0.0, 0.5, 0.9)):
        for draw in range(2):
            labels = noisy_labels(data.train.labels_N, 3, rate, [3, 0, draw])
            alone = plain_probe(
                x_ND / results["scale"], labels, 3, lambda epoch: shuffled(48, 16, [3, 1, epoch]), settings.probe
            )
            torch.testing.assert_close(weights["ce.weight"][index, draw], alone.weight.detach(), rtol=1e-3, atol=1e-4)
            right = float((alone(x_ND / results["scale"]).argmax(-1) == labels).float().mean())
            assert results["train_accuracy"]["ce"][str(rate)][draw] == pytest.approx(right, abs=0.03)


def _words(settings: Settings, *more: str) -> list[str]:
    return [
        "--out", settings.common.out, "--device", "cpu", "--precision", "float32",
        "--dataset", settings.data.dataset, "--image-size", "12",
        "--epochs", "4", "--batch-size", "16", "--label-seeds", "2", "--noise-rates", "0,0.5,0.9", *more,
    ]  # fmt: skip


def test_done_before_or_again(
    settings: Settings,
    make_encoder: Callable[..., Encoder],
    changed: Callable[..., Settings],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def lines(given: Settings) -> list[str]:
        program.run(given)
        return capsys.readouterr().out.splitlines()

    make_encoder("ncl")
    first = lines(settings)
    results = results_of(settings, "ncl")
    assert len(first) == 2
    assert lines(settings) == ["ncl-0: done before"]
    assert results_of(settings, "ncl") == results
    assert lines(changed(settings, "consistency", images=1)) == ["ncl-0: done before"]

    assert len(lines(changed(settings, "probe", sce_beta=0.2))) == 2
    again = results_of(settings, "ncl")
    assert again["accuracy"]["ce"] == results["accuracy"]["ce"]  # the cross entropy has no beta

    make_encoder("ncl", seed=0, non_negative=False)  # the same weights under another activation
    assert len(lines(settings)) == 2
    probe_file(settings.common.out, "ncl", 0).with_suffix(".safetensors").unlink()
    assert len(lines(settings)) == 2
    assert lines(settings) == ["ncl-0: done before"]


def test_another_encoder_is_probed_again(
    settings: Settings, make_encoder: Callable[..., Encoder], capsys: pytest.CaptureFixture[str]
) -> None:
    make_encoder("simclr")
    program.run(settings)
    before = results_of(settings, "simclr")
    make_encoder("simclr", seed=8)
    for path in encoder_folder(settings.common.out, "simclr", 8).glob("encoder.*"):
        path.replace(encoder_folder(settings.common.out, "simclr", 0) / path.name)
    capsys.readouterr()
    program.run(settings)
    assert "done before" not in capsys.readouterr().out
    assert results_of(settings, "simclr")["scale"] != before["scale"]


def test_autoencoder_and_seeds_that_are_there(
    settings: Settings,
    make_encoder: Callable[..., Encoder],
    changed: Callable[..., Settings],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_encoder("simclr")
    make_encoder("ncl", seed=1)
    folder = encoder_folder(settings.common.out, "sae", 0)
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_sae(TopKAutoencoder(16, 24, 4), folder)
    program.run(changed(settings, "common", seeds=(0, 1, 2)))
    names = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["simclr-0"] * 2 + ["sae-0"] * 2 + ["ncl-1"] * 2
    weights = load_file(probe_file(settings.common.out, "sae", 0).with_suffix(".safetensors"))
    assert weights["ce.weight"].shape == (3, 2, 3, 24)


def test_crops_make_other_classifiers(
    settings: Settings, make_encoder: Callable[..., Encoder], changed: Callable[..., Settings]
) -> None:
    """Of the same scale, labels and orders; the same ones each time, from cropped and flipped images."""
    make_encoder("ncl")
    results = []
    for augment in (False, True, True):
        program.run(changed(settings, "probe", augment=augment))
        file = probe_file(settings.common.out, "ncl", 0)
        results.append((results_of(settings, "ncl"), load_file(file.with_suffix(".safetensors"))))
        file.unlink()
    (cached, plain), (_, first), (cropped, again) = results
    assert cropped["scale"] == cached["scale"]
    assert torch.equal(first["ce.weight"], again["ce.weight"])
    assert not torch.allclose(first["ce.weight"], plain["ce.weight"], rtol=0.01)
    assert sum(cropped["accuracy"]["ce"]["0.0"]) / 2 > 0.5  # of three classes


def test_other_images_can_be_given(
    settings: Settings, shapes: Path, make_encoder: Callable[..., Encoder], changed: Callable[..., Settings]
) -> None:
    make_encoder("simclr")
    program.run(changed(settings, "probe", ood=(f"same={shapes / 'val'}",)))
    results = results_of(settings, "simclr")
    assert results["ood"] == {"same": pytest.approx(results["accuracy"]["ce"]["0.0"])}


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("probe", {"noise_rates": (0.5,)}, "--noise-rates must have 0"),
        ("probe", {"noise_rates": (0.0, 0.5, 0.5)}, "--noise-rates has a number twice"),
        ("probe", {"noise_scales": (0.2, 0.2)}, "--noise-scales has a number twice"),
        ("probe", {"losses": ("sce",)}, "--losses must have ce"),
        ("probe", {"ood": ("sketch",)}, "NAME=FOLDER"),
        ("common", {"seeds": (5,)}, "no encoder of --seeds 5.*pretrain"),
    ],
)
def test_what_cannot_be_is_refused(
    settings: Settings,
    make_encoder: Callable[..., Encoder],
    changed: Callable[..., Settings],
    section: str,
    values: dict[str, Any],
    words: str,
) -> None:
    make_encoder("simclr")
    with pytest.raises(InputError, match=words):
        program.run(changed(settings, section, **values))
    assert not (Path(settings.common.out) / "probe").exists()


@pytest.mark.parametrize("rate", ["1.5", "-0.1", "nan"])
def test_rates_are_shares(rate: str) -> None:
    with pytest.raises(InputError, match="--noise-rates must be at least 0 and at most 1"):
        parse(["--out", "runs", f"--noise-rates=0,{rate}"], "probe")


def test_a_collapsed_encoder_is_named(settings: Settings, make_encoder: Callable[..., Encoder]) -> None:
    make_encoder("simclr", mean=(1e30, 1e30, 1e30), std=(1e-30, 1e-30, 1e-30))
    with pytest.raises(InputError, match="simclr-0: The features are not finite"):
        program.run(settings)


def test_divergence_is_named(
    settings: Settings, make_encoder: Callable[..., Encoder], changed: Callable[..., Settings]
) -> None:
    make_encoder("simclr")
    with pytest.raises(RunError, match="simclr-0: The linear classifiers diverged"):
        program.run(changed(settings, "probe", learning_rate=1e20, weight_decay=1e20))


def test_too_little_memory_names_the_fix(
    settings: Settings, make_encoder: Callable[..., Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    make_encoder("simclr")
    monkeypatch.setattr(program, "train_probes", fail)
    with pytest.raises(RunError, match=r"simclr-0: .*memory.*--batch-size"):
        program.run(settings)
    assert not (Path(settings.common.out) / "probe").exists()
