"""``monolora vision consistency``: its record against loops, what is done again, and what it refuses."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from monolora.errors import InputError, exit_status
from monolora.recipes.experiment_steps import write
from monolora.recipes.vision import consistency as program
from monolora.recipes.vision import probe, sae
from monolora.recipes.vision.features import Encoder, consistency_file, features_of, probe_file
from monolora.recipes.vision.images import ImageData
from monolora.recipes.vision.settings import Settings

CPU = torch.device("cpu")
RATES = ("0.0", "0.5", "0.9")
SCALE = 0.5

Probed = Callable[..., Path]


@pytest.fixture
def probed(settings: Settings, data: ImageData, make_encoder: Callable[..., Encoder]) -> Probed:
    """``probed(name, losses=("ce",))``: an encoder, and classifiers of two label seeds as the probe step saves them."""

    def make(name: str = "ncl", losses: tuple[str, ...] = ("ce",), seed: int = 0) -> Path:
        make_encoder(name, seed)
        features = features_of(settings.common, name, seed, data, CPU)
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, torch.Tensor] = {}
        for loss in losses:
            tensors[f"{loss}.weight"] = 20 * torch.randn(3, 2, 3, 16, generator=generator)
            tensors[f"{loss}.bias"] = torch.randn(3, 2, 3, generator=generator)
        file = probe_file(settings.common.out, name, seed)
        results = {
            "classes": data.val.classes,
            "scale": SCALE,
            "accuracy": {loss: {rate: [0.5, 0.5] for rate in RATES} for loss in losses},
            "per_class": {
                loss: {rate: [[0.4, 0.2 + float(rate), 0.3], [0.9, 0.1, 0.0]] for rate in RATES} for loss in losses
            },
        }
        write(file, {"losses": losses}, {"features": features.fingerprint}, results)
        save_file(tensors, file.with_suffix(".safetensors"))
        return file

    return make


def results_of(settings: Settings, name: str, seed: int = 0) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(consistency_file(settings.common.out, name, seed).read_text())["results"]
    return results


class Looped:
    """All that the record has, by loops over images and dimensions."""

    def __init__(self, z_ND: torch.Tensor, labels_N: torch.Tensor, threshold: float = 1e-5) -> None:
        self.z = z_ND.numpy().astype(np.float64)
        self.labels = labels_N.tolist()
        self.threshold = threshold
        self.consistency = [self._of_dimension(dimension) for dimension in range(self.z.shape[1])]

    def _of_dimension(self, dimension: int) -> float | None:
        seen = [label for z_D, label in zip(self.z, self.labels, strict=True) if abs(z_D[dimension]) > self.threshold]
        return Counter(seen).most_common(1)[0][1] / len(seen) if seen else None

    def right_and_wrong(self, weight: np.ndarray, bias: np.ndarray) -> tuple[list[float], list[float]]:
        """Of classifiers ``(C, D)`` and ``(C,)``."""
        groups: tuple[list[float], list[float]] = ([], [])
        for z_D, label in zip(self.z, self.labels, strict=True):
            value = self.consistency[int(np.argmax(z_D))]
            if value is not None and abs(z_D.max()) > self.threshold:
                groups[int(np.argmax(weight @ (z_D / SCALE) + bias) != label)].append(value)
        return groups

    def top(self, dimension: int, count: int) -> list[int]:
        order = sorted(range(len(self.z)), key=lambda i: -self.z[i, dimension])
        return [i for i in order if abs(self.z[i, dimension]) > self.threshold][:count]


def looped_of(settings: Settings, name: str, data: ImageData) -> Looped:
    return Looped(features_of(settings.common, name, 0, data, CPU).val_ND, data.val.labels_N)


@pytest.mark.parametrize("name", ["simclr", "ncl"])
def test_the_record_against_loops(name: str, settings: Settings, data: ImageData, probed: Probed) -> None:
    probed(name)
    program.run(settings)
    results, looped = results_of(settings, name), looped_of(settings, name, data)
    live = [value for value in looped.consistency if value is not None]
    assert results["per_dimension"] == pytest.approx(looped.consistency)
    assert results["consistency"] == pytest.approx(np.mean(live))
    assert (results["live"], results["dimensions"]) == (len(live), 16)
    assert results["zeros"] == pytest.approx((abs(looped.z) <= looped.threshold).mean())
    assert (results["zeros"] > 0.2) == (name == "ncl")


def test_salient_dimensions_of_images_that_each_classifier_gets_right_and_wrong(settings: Settings) -> None:
    generator = torch.Generator().manual_seed(0)
    z_ND = torch.randn(60, 16, generator=generator).relu()
    z_ND[torch.rand(60, 16, generator=generator) < 0.8] = 0
    z_ND[50:] = 0  # images that activate nothing: the classifiers say something all the same
    labels_N = torch.arange(60) % 3
    weight_MCD, bias_MC = torch.randn(2, 3, 16, generator=generator), torch.randn(2, 3, generator=generator)
    classifiers = program.Classifiers(weight_MCD, bias_MC, SCALE, ("a", "b", "c"), (0.1, 0.2, 0.3))
    results = program.measure(z_ND, labels_N, classifiers, settings.consistency, 0)
    looped = Looped(z_ND, labels_N)
    for draw in range(2):
        right, wrong = looped.right_and_wrong(weight_MCD[draw].numpy(), bias_MC[draw].numpy())
        assert abs(np.mean(right) - np.mean(wrong)) > 0.01
        assert results["right"][draw] == pytest.approx(np.mean(right))
        assert results["wrong"][draw] == pytest.approx(np.mean(wrong))
        if draw == 0:
            assert results["right_values"] == pytest.approx(right)
            assert results["wrong_values"] == pytest.approx(wrong)


@pytest.mark.parametrize(("index", "rate", "best", "worst"), [(0, 0.0, 0, 1), (2, 0.9, 1, 2)])
def test_the_best_and_the_worst_class_show_the_live_dimension_of_the_largest_weight(
    index: int,
    rate: float,
    best: int,
    worst: int,
    settings: Settings,
    data: ImageData,
    probed: Probed,
    changed: Callable[..., Settings],
) -> None:
    file = probed("ncl").with_suffix(".safetensors")
    looped, tensors = looped_of(settings, "ncl", data), load_file(file)
    live = [dimension for dimension in range(16) if looped.consistency[dimension] is not None]
    dead = [dimension for dimension in range(16) if dimension not in live]
    tensors["ce.weight"][..., dead] = 1000
    save_file(tensors, file)
    weights = tensors["ce.weight"][index, 0].tolist()
    settings = changed(settings, "consistency", noise_rate=rate)
    program.run(settings)
    results = results_of(settings, "ncl")
    assert dead
    accuracies = [0.4, 0.2 + rate, 0.3]
    for key, number in (("best_class", best), ("worst_class", worst)):
        dimension = max(live, key=lambda candidate: weights[number][candidate])
        images = looped.top(dimension, 3)
        assert results[key] == {
            "class": data.val.classes[number],
            "accuracy": pytest.approx(accuracies[number]),
            "dimension": dimension,
            "consistency": pytest.approx(looped.consistency[dimension]),
            "images": images,
            "activations": pytest.approx([looped.z[i, dimension] for i in images]),
        }


def test_shown_dimensions_are_drawn_among_the_live(
    settings: Settings, data: ImageData, probed: Probed, changed: Callable[..., Settings]
) -> None:
    probed("ncl")
    program.run(changed(settings, "consistency", dimensions=100, images=100))
    entries, looped = results_of(settings, "ncl")["random_dimensions"], looped_of(settings, "ncl", data)
    drawn = [entry["dimension"] for entry in entries]
    assert sorted(drawn) == [dimension for dimension in range(16) if looped.consistency[dimension] is not None]
    assert drawn != sorted(drawn)
    for entry in entries:
        assert entry["images"] == looped.top(entry["dimension"], 100)
        assert entry["consistency"] == pytest.approx(looped.consistency[entry["dimension"]])
    program.run(changed(settings, "consistency", dimensions=2, images=100))
    assert [entry["dimension"] for entry in results_of(settings, "ncl")["random_dimensions"]] == drawn[:2]


def test_all_that_has_classifiers_is_measured_and_told_in_one_line(
    settings: Settings, probed: Probed, changed: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    probed("simclr", seed=0)
    probed("ncl", seed=0)
    probed("ncl", seed=1)
    settings = changed(settings, "common", seeds=(0, 1))
    program.run(settings)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["simclr-0", "ncl-0", "ncl-1"]
    results = results_of(settings, "ncl", 1)
    assert f"consistency {results['consistency']:.3f} of {results['live']} live of 16 dimensions" in lines[2]
    assert f"right {np.mean(results['right']):.3f}, wrong {np.mean(results['wrong']):.3f}" in lines[2]
    program.run(settings)
    assert capsys.readouterr().out.splitlines() == [
        "simclr-0: done before",
        "ncl-0: done before",
        "ncl-1: done before",
    ]


@pytest.mark.parametrize("what", ["settings", "classifiers"])
def test_it_is_done_again_after_a_change_of(
    what: str,
    settings: Settings,
    probed: Probed,
    changed: Callable[..., Settings],
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = probed("ncl").with_suffix(".safetensors")
    program.run(settings)
    first = results_of(settings, "ncl")
    if what == "settings":
        settings = changed(settings, "consistency", threshold=0.05)
    else:
        save_file({name: -tensor for name, tensor in load_file(weights).items()}, weights)
    capsys.readouterr()
    program.run(settings)
    assert "done before" not in capsys.readouterr().out
    assert results_of(settings, "ncl") != first


def test_the_probes_own_files_are_read_as_the_probe_wrote_them(
    settings: Settings, make_encoder: Callable[..., Encoder]
) -> None:
    make_encoder("simclr")
    sae.run(settings)
    probe.run(settings)
    program.run(settings)
    for name in ("simclr", "sae"):
        results = results_of(settings, name)
        trained = json.loads(probe_file(settings.common.out, name, 0).read_text())["results"]
        accuracy = trained["accuracy"]["ce"]["0.9"][0]
        assert len(results["right_values"]) / 18 == pytest.approx(accuracy)
        assert len(results["wrong_values"]) / 18 == pytest.approx(1 - accuracy)
        per_class = trained["per_class"]["ce"]["0.9"][0]
        assert results["best_class"]["accuracy"] == max(per_class)
        assert results["worst_class"]["accuracy"] == min(per_class)


def test_a_noise_rate_without_classifiers_is_one_line_with_those_there_are(
    settings: Settings, shapes: Path, probed: Probed, capsys: pytest.CaptureFixture[str]
) -> None:
    probed("ncl")
    words = ["--out", settings.common.out, "--dataset", str(shapes), "--image-size", "12", "--device", "cpu"]
    assert exit_status(lambda: program.main([*words, "--precision", "float32", "--noise-rate", "0.7"])) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no cross-entropy classifiers of --noise-rate 0.7; it has those of 0.0, 0.5, 0.9." in error


def test_classifiers_of_another_loss_are_not_taken(settings: Settings, probed: Probed) -> None:
    probed("ncl", losses=("sce",))
    with pytest.raises(InputError, match="it has those of no rate"):
        program.run(settings)


def test_without_classifiers_it_says_what_to_run_first(
    settings: Settings, probed: Probed, changed: Callable[..., Settings]
) -> None:
    probed("ncl", seed=0)
    with pytest.raises(InputError, match=r"no classifiers of seed 1\. Train .* monolora vision probe"):
        program.run(changed(settings, "common", seeds=(0, 1)))


def test_classifiers_of_another_checkpoint_are_refused(
    settings: Settings, probed: Probed, make_encoder: Callable[..., Encoder]
) -> None:
    probed("ncl")
    make_encoder("ncl", projector_hidden=24)
    with pytest.raises(InputError, match="are of another checkpoint or other images"):
        program.run(settings)


@pytest.mark.parametrize("left", [None, 100])
def test_lost_and_damaged_weights_are_refused(left: int | None, settings: Settings, probed: Probed) -> None:
    weights = probed("ncl").with_suffix(".safetensors")
    whole = weights.read_bytes()
    weights.unlink()
    if left is not None:
        weights.write_bytes(whole[:left])
    with pytest.raises(InputError, match=r"Cannot load .*ncl-0\.safetensors"):
        program.run(settings)


def test_an_encoder_that_says_nothing_is_refused(
    settings: Settings, probed: Probed, changed: Callable[..., Settings]
) -> None:
    probed("ncl")
    with pytest.raises(InputError, match="No image activates any dimension"):
        program.run(changed(settings, "consistency", threshold=1e6))
