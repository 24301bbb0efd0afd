"""Noise on normalised images, and images of another kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scipy.stats import kstest

from monolora.errors import InputError
from monolora.recipes.vision.features import Encoder, Representation, load_representation
from monolora.recipes.vision.images import ImageData
from monolora.recipes.vision.linear_probe import Probes
from monolora.recipes.vision.probe import noise_accuracies, noise_of, ood_accuracies, open_ood
from monolora.recipes.vision.settings import Settings
from tests.support.shapes import save_shapes

CPU = torch.device("cpu")
SCALES = (0.0, 0.5, 3.0)


@pytest.fixture
def representation(settings: Settings, make_encoder: Callable[..., Encoder]) -> Representation:
    make_encoder("ncl")
    return load_representation(settings.common, "ncl", 0, CPU)


@pytest.fixture
def probes(representation: Representation, data: ImageData) -> Probes:
    """Two classifiers by the nearest of the classes' means: of all dimensions, and of the first half."""
    z_ND, labels = representation.of_all(data.train), data.train.labels_N
    means_CD = torch.stack([z_ND[labels == label].mean(0) for label in range(3)])
    means_2CD = torch.stack([means_CD, means_CD * (torch.arange(16) < 8)])
    return Probes(2 * means_2CD, -means_2CD.square().sum(-1), 1.0)


@pytest.mark.parametrize(("kind", "distribution"), [("uniform", "uniform"), ("gaussian", "norm")])
def test_noise_is_of_its_distribution(kind: str, distribution: str) -> None:
    drawn = noise_of(kind, (2, 3, 30, 30), torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 3, 30, 30)
    assert kstest(drawn.flatten().numpy(), distribution).pvalue > 1e-3


def test_noise_is_scaled_and_added_after_normalising(
    representation: Representation, probes: Probes, data: ImageData
) -> None:
    """The networks are given the normalised images plus scale times one draw, the same for all scales."""
    seen: list[torch.Tensor] = []
    hook = representation.encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    noise_accuracies(representation, probes, data.val, SCALES, [0, 0])
    hook.remove()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.train.mean, data.train.std))
    clean = (data.val.pixels_N3SS / 255 - mean) / std
    for draws in (seen[:3], seen[3:]):  # uniform, Gaussian
        torch.testing.assert_close(draws[0], clean)
        torch.testing.assert_close((draws[1] - clean) / 0.5, (draws[2] - clean) / 3.0, rtol=1e-3, atol=1e-4)
    uniform, gaussian = (seen[draw] - clean for draw in (2, 5))
    assert uniform.min() >= -1e-5
    assert uniform.max() <= 3 + 1e-5
    assert float(uniform.mean()) == pytest.approx(1.5, abs=0.1)
    assert float(gaussian.mean()) == pytest.approx(0.0, abs=0.2)
    assert float(gaussian.std()) == pytest.approx(3.0, rel=0.05)


def test_accuracies_are_those_of_what_the_networks_are_given(
    representation: Representation, probes: Probes, data: ImageData
) -> None:
    """Without noise those of the images."""
    seen: list[torch.Tensor] = []
    hook = representation.encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    accuracies = noise_accuracies(representation, probes, data.val, SCALES, [0, 0])
    hook.remove()
    expected = probes.correct(representation.of_all(data.val), data.val.labels_N).float().mean(1).tolist()
    assert set(accuracies) == {"uniform", "gaussian"}
    assert expected[0] > 0.6  # of three classes
    for kind, draws in (("uniform", seen[:3]), ("gaussian", seen[3:])):
        assert list(accuracies[kind]) == ["0.0", "0.5", "3.0"]
        assert accuracies[kind]["0.0"] == pytest.approx(expected)
        for scale, given in zip(("0.0", "0.5", "3.0"), draws, strict=True):
            with torch.no_grad():
                right_MN = probes.correct(representation.of_images(given), data.val.labels_N)
            assert accuracies[kind][scale] == pytest.approx(right_MN.float().mean(1).tolist())
    assert accuracies["gaussian"]["3.0"] != pytest.approx(expected)


def test_the_seed_decides(representation: Representation, probes: Probes, data: ImageData) -> None:
    scales = tuple(0.2 * step for step in range(1, 8))
    first, again, other = (
        noise_accuracies(representation, probes, data.val, scales, seed) for seed in ([0, 1], [0, 1], [1, 1])
    )
    assert first == again
    assert first != other


def test_images_of_another_kind_are_labelled_by_folder(
    settings: Settings, representation: Representation, probes: Probes, data: ImageData, tmp_path: Path
) -> None:
    """The validation pictures once more, of two of the classes; a folder of no class is passed over."""
    root = save_shapes(tmp_path / "again", train=1)
    (root / "val" / "blue").rename(root / "val" / "ultramarine")
    ood = open_ood([f"same={root / 'val'}"], settings.data, data.train.classes, CPU)
    right_MN = probes.correct(representation.of_all(data.val), data.val.labels_N)
    expected = right_MN[:, data.val.labels_N > 0].float().mean(1).tolist()
    assert ood_accuracies(representation, probes, ood) == {"same": pytest.approx(expected)}


@pytest.mark.parametrize(
    ("ood", "words"),
    [
        (["sketch"], "NAME=FOLDER"),
        (["=folder"], "NAME=FOLDER"),
        (["sketch="], "NAME=FOLDER"),
        (["sketch={val}", "sketch={val}"], "'sketch' twice"),
        (["sketch={val}/nowhere"], "no folder"),
        (["sketch={val}/.."], "none of the classes"),
    ],
)
def test_other_words_are_refused(settings: Settings, shapes: Path, data: ImageData, ood: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_ood([word.format(val=shapes / "val") for word in ood], settings.data, data.train.classes, CPU)
