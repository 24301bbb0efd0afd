"""The experiment for one number of training samples, against one classifier at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from monolora.recipes.experiment_steps import generator_of, noisy_labels
from monolora.recipes.superposition import classifiers
from monolora.recipes.superposition.classifiers import noise_results, train_classifiers
from monolora.recipes.superposition.settings import MONO, POLY, Run
from monolora.recipes.superposition.toy_model import labelled_samples

CPU = torch.device("cpu")
COUNT = 150
SETTINGS = Run(
    features=6, dimensions=3, sparsities=(0.5, 0.0, 0.8), seeds=2, test_samples=300, noise_rates=(0.5, 0.0, 0.9),
    noise_scales=(0.0, 1.0, 0.3), epochs=4, batch_size=40, learning_rate=2.0,
)  # fmt: skip


@pytest.fixture(scope="module", name="W_Ssmn")
def _weights() -> torch.Tensor:
    """At S = 0, features alone; else all at random."""
    W_Ssmn = torch.randn(3, 3, 3, 6, generator=torch.Generator().manual_seed(0))
    W_Ssmn[1] = torch.eye(3, 6)
    return W_Ssmn


@pytest.fixture(scope="module")
def results(W_Ssmn: torch.Tensor) -> dict[str, Any]:
    return noise_results(W_Ssmn[:, :2], SETTINGS, COUNT, CPU)


def test_shape(results: dict[str, Any]) -> None:
    assert list(results) == ["accuracy", "fitted"]
    for sparsity in ("0.5", "0.0", "0.8"):
        for encoder in (MONO, POLY):
            accuracy = results["accuracy"][sparsity][encoder]
            assert {kind: list(by_level) for kind, by_level in accuracy.items()} == {
                "label": ["0.5", "0.0", "0.9"],
                "input": ["0.0", "1.0", "0.3"],
            }
            fitted = results["fitted"][sparsity][encoder]
            assert list(fitted) == ["0.5", "0.0", "0.9"]
            values = [*accuracy["label"].values(), *accuracy["input"].values(), *fitted.values()]
            assert all(len(of_seeds) == 2 and all(0 <= share <= 1 for share in of_seeds) for of_seeds in values)


def test_at_sparsity_0_mono_is_poly(results: dict[str, Any]) -> None:
    for name in ("accuracy", "fitted"):
        assert results[name]["0.0"][MONO] == results[name]["0.0"][POLY]
        assert results[name]["0.8"][MONO] != results[name]["0.8"][POLY]


@pytest.mark.parametrize(("index", "sparsity"), [(0, 0.5), (2, 0.8)])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_number_is_that_of_one_classifier(
    W_Ssmn: torch.Tensor, results: dict[str, Any], index: int, sparsity: float, seed: int
) -> None:
    """Both encoders on the same samples, wrong labels and input noise; chosen by the largest logit."""
    train, test = (labelled_samples(*of) for of in ((COUNT, 6, sparsity, seed, 10), (300, 6, sparsity, seed, 11)))
    z_Nn = torch.randn(300, 6, generator=generator_of([seed, 13]))
    for encoder, W in ((MONO, W_Ssmn[1, seed]), (POLY, W_Ssmn[index, seed])):
        for rate in SETTINGS.noise_rates:
            labels = noisy_labels(train.labels_N, 6, rate, [seed, 12])
            trained = train_classifiers((train.x_Nn @ W.T).unsqueeze(0), labels.view(1, 1, -1), 6, SETTINGS)
            weight_CE, scale = trained.weight_GCRE[0, :, 0], trained.scale_G[0]

            def share(x: torch.Tensor, right: torch.Tensor, weight=weight_CE, scale=scale, W=W) -> float:  # type: ignore[no-untyped-def]
                logits = x @ W.T / scale @ weight[:, :-1].T + weight[:, -1]
                return float((logits.argmax(1) == right).double().mean())

            close = {"abs": 2.5 / 300}  # rounding may turn a sample or two
            accuracy = results["accuracy"][str(sparsity)][encoder]
            assert accuracy["label"][str(rate)][seed] == pytest.approx(share(test.x_Nn, test.labels_N), **close)
            fitted = results["fitted"][str(sparsity)][encoder][str(rate)][seed]
            assert fitted == pytest.approx(share(train.x_Nn, labels), **close)
            if rate == 0:
                for scale_of_noise in SETTINGS.noise_scales:
                    expected = share(test.x_Nn + scale_of_noise * z_Nn, test.labels_N)
                    assert accuracy["input"][str(scale_of_noise)][seed] == pytest.approx(expected, **close)


def test_without_noise_both_kinds_are_the_same(results: dict[str, Any]) -> None:
    for of_sparsity in results["accuracy"].values():
        for accuracy in of_sparsity.values():
            assert accuracy["input"]["0.0"] == accuracy["label"]["0.0"]


def test_more_seeds_have_the_fewer_among_them(W_Ssmn: torch.Tensor, results: dict[str, Any]) -> None:
    more = noise_results(W_Ssmn, replace(SETTINGS, seeds=3), COUNT, CPU)
    for sparsity, of_sparsity in results["accuracy"].items():
        for encoder, of_encoder in of_sparsity.items():
            for kind, of_kind in of_encoder.items():
                for level, values in of_kind.items():
                    of_seeds = more["accuracy"][sparsity][encoder][kind][level]
                    assert len(of_seeds) == 3
                    assert of_seeds[:2] == pytest.approx(values, abs=1.5 / 300)


def test_gaussian_noise_is_standard_and_its_seeds_own() -> None:
    of_seeds = [classifiers._gaussian(replace(SETTINGS, test_samples=20_000), seed) for seed in (0, 1)]
    for z_Nn in of_seeds:
        assert abs(float(z_Nn.mean())) < 0.01
        assert float(z_Nn.std()) == pytest.approx(1, abs=0.01)
    assert abs(float((of_seeds[0] * of_seeds[1]).mean())) < 0.02


def test_wrong_labels_are_nested_over_rates() -> None:
    train = labelled_samples(1_001, 6, 0.5, 0, 10)
    half, clean, most = classifiers._noisy_labels(SETTINGS, train, seed=0)
    assert torch.equal(clean, train.labels_N)
    wrong = half != clean
    assert (int(wrong.sum()), int((most != clean).sum())) == (500, 900)
    assert torch.equal(most[wrong], half[wrong])


def test_an_encoder_of_all_features_beats_one_of_half_of_them() -> None:
    """On sparse data and clean labels. Wrong labels cost the first accuracy, and noisy inputs both."""
    settings = replace(SETTINGS, sparsities=(0.0, 0.8), epochs=40, noise_rates=(0.0, 0.8), noise_scales=(0.0, 2.0))
    pairs = torch.cat([torch.eye(3), -torch.eye(3)], 1)
    W_Ssmn = torch.stack([torch.eye(3, 6), pairs]).unsqueeze(1).expand(-1, 2, -1, -1)
    accuracy = noise_results(W_Ssmn, settings, 2_000, CPU)["accuracy"]["0.8"]
    for seed in range(2):
        assert accuracy[POLY]["label"]["0.0"][seed] > accuracy[MONO]["label"]["0.0"][seed] + 0.1
        assert accuracy[POLY]["label"]["0.8"][seed] < accuracy[POLY]["label"]["0.0"][seed] - 0.05
        for encoder in (MONO, POLY):
            assert accuracy[encoder]["input"]["2.0"][seed] < accuracy[encoder]["input"]["0.0"][seed] - 0.05
