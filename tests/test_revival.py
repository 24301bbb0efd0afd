"""Units that start again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from monolora.revival import revive
from tests.support.one_layer import adapted, layer_of


def _dead(base: nn.Module, x: torch.Tensor, activation: str = "relu") -> tuple[Any, Any]:
    """A layer whose units 1 and 3 are off on all inputs, and an optimizer that has made a step."""
    model = adapted(base, r=5, activation=activation).train()
    layer = layer_of(model)
    A = layer.lora_embedding_A["default"] if isinstance(base, nn.Embedding) else layer.lora_A["default"].weight
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        A[[1, 3]] = -A[[1, 3]].abs() - 0.1
    return layer, optimizer


@pytest.mark.parametrize(
    ("base", "x", "activation"),
    [
        (nn.Linear(6, 4), torch.rand(3, 7, 6), "relu"),
        (nn.Linear(6, 4), torch.rand(3, 7, 6), "jumprelu"),
        (nn.Embedding(20, 4), torch.randint(20, (3, 7)), "relu"),
    ],
)
def test_outputs_stay_and_the_units_come_back(base: nn.Module, x: torch.Tensor, activation: str) -> None:
    """The same outputs to the last bit; then units that are on, whose columns of B learn."""
    layer, optimizer = _dead(base, x, activation)
    before, untouched = layer(x), [p.detach().clone() for p in layer.parameters()]
    generator = torch.Generator().manual_seed(3)
    revive(layer, torch.tensor([1, 3]), optimizer, generator)
    after = layer(x)
    assert torch.equal(after, before)
    is_embedding = isinstance(base, nn.Embedding)
    A = layer.lora_embedding_A["default"] if is_embedding else layer.lora_A["default"].weight
    B = layer.lora_embedding_B["default"] if is_embedding else layer.lora_B["default"].weight
    on = (A.T[x] if is_embedding else x @ A.T)[..., [1, 3]] > 0
    assert on.any()
    after.sum().backward()
    revived = on.flatten(0, 1).any(0)
    assert torch.equal(B.grad[:, [1, 3]].any(0), revived if activation == "relu" else B.grad[:, [1, 3]].any(0))
    for parameter, old in zip(layer.parameters(), untouched, strict=True):
        rest = [0, 2, 4]
        if parameter is A:
            assert torch.equal(parameter[rest], old[rest])
        elif parameter is B:
            assert torch.equal(parameter[:, rest], old[:, rest])
            assert not parameter[:, [1, 3]].any()
    for parameter, dim in ((A, 0), (B, 1)):
        for name in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[parameter][name].movedim(dim, 0)
            assert not moment[[1, 3]].any()
            assert moment[[0, 2, 4]].any()
    if activation == "jumprelu":
        assert layer.threshold("default")[[1, 3]].unique().tolist() == pytest.approx([0.05])


def test_a_seed_gives_the_rows() -> None:
    """Of the size that a new adapter's have."""
    x, rows = torch.rand(3, 7, 6), []
    for seed in (0, 0, 1):
        layer, optimizer = _dead(nn.Linear(6, 4), x)
        revive(layer, torch.tensor([1, 3]), optimizer, torch.Generator().manual_seed(seed))
        rows.append(layer.lora_A["default"].weight[[1, 3]].detach())
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert float(rows[0].abs().max()) <= 6**-0.5
