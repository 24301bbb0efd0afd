"""Small parts that experiments share."""

from __future__ import annotations

import pytest
import torch

from monolora.recipes.experiment_steps import softmax_into
from monolora.reporting.tables import piped


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_softmax_is_torchs(dim: int) -> None:
    logits = 30 * torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before, out = logits.clone(), torch.full_like(logits, float("nan"))
    softmax_into(out, logits, dim, 7)
    torch.testing.assert_close(out, logits.softmax(dim) / 7)
    assert torch.equal(logits, before)


def test_a_table() -> None:
    assert piped(["name", "%"], [["a", "12.5"], ["longer", "3"]]) == (
        "| name   |    % |\n| ------ | ---: |\n| a      | 12.5 |\n| longer |    3 |"
    )
