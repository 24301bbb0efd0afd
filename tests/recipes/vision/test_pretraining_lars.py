"""LARS with clipping, against the formula as the paper's code has it, weight by weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monolora.recipes.vision.pretraining import ClippedLars


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3, bias=False)).double()


def _by_hand(model: nn.Module, x: torch.Tensor, lrs: list[float], momentum: float, decay: float, eta: float) -> None:
    buffers = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for lr in lrs:
        model.zero_grad()
        model(x).square().sum().backward()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                step = weight.grad.clone()
                if weight.ndim > 1:
                    ratio = eta * weight.norm() / (weight.grad.norm() + decay * weight.norm())
                    step = (step + decay * weight) * min(ratio / lr, torch.tensor(1.0))
                buffers[name].mul_(momentum).add_(step)
                weight.sub_(lr * buffers[name])


@pytest.mark.parametrize("trust", [0.02, 0.5, 100.0], ids=["bounded", "in between", "plain SGD"])
def test_it_is_the_formula(trust: float) -> None:
    ours, theirs, x = _model(), _model(), torch.randn(8, 6, dtype=torch.float64)
    lrs = [0.001, 0.1, 0.4, 0.2]
    optimizer = ClippedLars(ours.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-3, trust=trust)
    for lr in lrs:
        optimizer.set_lr(lr)
        optimizer.zero_grad()
        ours(x).square().sum().backward()
        optimizer.step()
    _by_hand(theirs, x, lrs, 0.9, 1e-3, trust)
    for (name, weight), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_what_has_no_gradient_stays() -> None:
    model = _model()
    before = model[2].weight.clone()
    optimizer = ClippedLars(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, trust=0.02)
    model[0](torch.randn(4, 6, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert torch.equal(model[2].weight, before)


def test_weights_of_zeros_can_begin() -> None:
    weight = nn.Parameter(torch.zeros(3, 3))
    optimizer = ClippedLars([weight], lr=0.1, momentum=0.9, weight_decay=0.0, trust=0.02)
    weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert weight.isfinite().all()
    assert (weight != 0).all()
