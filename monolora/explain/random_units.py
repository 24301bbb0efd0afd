"""Random units: the control of every score of an adapter's units, at the same sparsity.

A random unit reads a direction drawn at random in the same module. Where units are never negative, it fires on its
highest inputs, as often as the unit that it stands for: a ReLU with a bias. To look at sparser units, all are shrunk:
an activation loses the threshold that leaves a given share of tokens, and ends at 0.

Shapes: T tokens, U units.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel

from monolora.activations import CONTROL
from monolora.config import MonoLoraConfig
from monolora.stats import SEED
from monolora.units import Layout, matrices_of


@contextmanager
def random_units(model: PeftModel, layout: Layout, draws: int, seed: int = SEED) -> Iterator[list[Layout]]:
    """During it, adapters of random units are active beside the model's own; they add 0 to every output.

    They stand for units that are never negative with their pre-activations, which :func:`fired_share_thresholds` turns
    into such units; for others with the adapter's own activation.

    Args:
        model: with one adapter active.
        layout: of that adapter.
        draws: how many adapters, each with as many units as the model's own.
        seed: of all.
    """
    generator = torch.Generator().manual_seed(seed)
    names = [f"random_{draw}" for draw in range(draws)]
    for name in names:
        model.add_adapter(name, _config(model, layout))
        for layer in layout.layers.values():
            A, B = matrices_of(layer, name)
            with torch.no_grad():
                A.copy_(torch.randn(A.shape, generator=generator))
                B.zero_()
    tuner: Any = model.base_model
    tuner.set_adapter([layout.adapter, *names])
    try:
        yield [Layout(layout.layers, layout.ranks, name, layout.signed) for name in names]
    finally:
        tuner.set_adapter(layout.adapter)
        for name in names:
            model.delete_adapter(name)


def _config(model: PeftModel, layout: Layout) -> LoraConfig:
    own: Any = model.peft_config[layout.adapter]
    shape: dict[str, Any] = {"r": 1, "target_modules": list(layout.ranks), "rank_pattern": dict(layout.ranks)}
    if not isinstance(own, MonoLoraConfig):
        return LoraConfig(**shape, task_type=own.task_type)
    return MonoLoraConfig(**shape, task_type=own.task_type, activation=own.activation if layout.signed else CONTROL)


def own_thresholds(h_TU: torch.Tensor, share: float) -> torch.Tensor:
    """The sizes below which units are cut so that each fires on no more than a share of tokens; 0 where it does so.

    Args:
        h_TU: activations.
        share: of the tokens, 0 to 1.
    """
    size_TU = h_TU.abs()
    fired_U = (size_TU > 0).sum(0)
    threshold_U = _thresholds(size_TU, torch.full_like(fired_U, round(share * len(h_TU))))
    return torch.where(fired_U <= round(share * len(h_TU)), 0.0, threshold_U)


def fired_share_thresholds(z_TU: torch.Tensor, share_U: torch.Tensor) -> torch.Tensor:
    """The pre-activations above which each random unit fires on its share of tokens.

    Args:
        z_TU: pre-activations.
        share_U: of the tokens, 0 to 1; of one that fires on all, the threshold is its lowest.
    """
    return _thresholds(z_TU, (share_U * len(z_TU)).round().long())


def _thresholds(value_TU: torch.Tensor, count_U: torch.Tensor) -> torch.Tensor:
    """The values that so many others are above, but for ties."""
    descending_TU = value_TU.sort(dim=0, descending=True).values
    return descending_TU.gather(0, count_U.clamp(max=len(value_TU) - 1)[None])[0]


def shrunk(h_TU: torch.Tensor, threshold_U: torch.Tensor, signed: bool) -> torch.Tensor:
    """Activations less the threshold; 0 for those that are not above it, in size if they may be negative."""
    if signed:
        return h_TU.sign() * (h_TU.abs() - threshold_U).clamp(min=0)
    return (h_TU - threshold_U).clamp(min=0)


def fired_share(h_TU: torch.Tensor) -> torch.Tensor:
    """The share of tokens on which each unit is not 0, ``(U,)``."""
    return (h_TU != 0).float().mean(0)
