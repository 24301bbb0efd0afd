"""Semantic consistency, on a case made by hand and against a loop; salient dimensions; top images."""

from __future__ import annotations

from collections import Counter
from math import isnan, nan

import pytest
import torch

from monolora.recipes.vision import consistency
from monolora.recipes.vision.consistency import (
    salient_consistency,
    salient_dimensions,
    semantic_consistency,
    top_images,
)

# of four images, classes 0 0 1 2: all activate dimension 0 (two of class 0), two of different classes dimension 1 (one
# of them by a negative activation), one dimension 2, and none dimension 3
HAND_MADE = torch.tensor([[1.0, 0, 0, 0], [2, 0, 0, 0], [3, 0.5, 0, 0], [4, -0.5, 6, 1e-6]])
LABELS = torch.tensor([0, 0, 1, 2])


def looped(z_ND: torch.Tensor, labels_N: torch.Tensor, threshold: float) -> list[float]:
    shares = []
    for column in z_ND.T.tolist():
        seen = [label for z, label in zip(column, labels_N.tolist(), strict=True) if abs(z) > threshold]
        shares.append(Counter(seen).most_common(1)[0][1] / len(seen) if seen else nan)
    return shares


def test_the_case_made_by_hand() -> None:
    consistency_D = semantic_consistency(HAND_MADE, LABELS, 3, 1e-5).tolist()
    assert consistency_D[:3] == [0.5, 0.5, 1]
    assert isnan(consistency_D[3])


@pytest.mark.parametrize("threshold", [0.0, 1e-5, 0.8, 3.0])
@pytest.mark.parametrize("chunk", [7, 4096])
def test_counted_as_in_a_loop(threshold: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consistency, "_CHUNK", chunk)
    generator = torch.Generator().manual_seed(3)
    z_ND = torch.randn(60, 12, generator=generator) * torch.bernoulli(torch.full((60, 12), 0.3), generator=generator)
    z_ND[:, 4] = 0
    labels_N = torch.randint(5, (60,), generator=generator)
    consistency_D = semantic_consistency(z_ND, labels_N, 6, threshold)
    torch.testing.assert_close(consistency_D, torch.tensor(looped(z_ND, labels_N, threshold)), equal_nan=True)


def test_of_dense_features_it_is_the_share_of_the_most_frequent_class() -> None:
    z_ND = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    consistency_D = semantic_consistency(z_ND, torch.tensor([0] * 20 + [1] * 30), 2, 1e-5)
    torch.testing.assert_close(consistency_D, torch.full((4,), 0.6))


def test_the_salient_dimension_has_the_largest_activation_not_the_largest_size() -> None:
    assert salient_dimensions(torch.tensor([[1.0, 2, -9], [0.3, 0.2, 0.1]])).tolist() == [1, 0]


def test_images_without_activation_have_no_salient_consistency() -> None:
    z_ND = torch.tensor([[0.0, 2, 1], [3, 0, 0], [0, 0, 0]])
    salient_N = salient_consistency(z_ND, torch.tensor([0.25, 0.5, 1]), 1e-5).tolist()
    assert salient_N[:2] == [0.5, 0.25]
    assert isnan(salient_N[2])


def test_top_images_are_sorted_and_activate_the_dimension() -> None:
    z_ND = torch.tensor([[0.0], [2], [0], [5], [2], [1]])
    assert top_images(z_ND, 0, 3, 1e-5) == ([3, 1, 4], [5, 2, 2])
    assert top_images(z_ND, 0, 9, 1e-5) == ([3, 1, 4, 5], [5, 2, 2, 1])
