"""Synthetic layers (inputs as plain matrices, and their moments as the calibration sums them up), texts and noise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from peft import PeftModel

from monolora.activations import activate
from monolora.merge.least_squares import InputSums, Moments, UnitSums


def units_of(x: torch.Tensor, A: torch.Tensor, activation: str = "relu") -> torch.Tensor:
    """The units ``(T, R)`` at inputs ``(T, I)``."""
    return activate(x @ A.to(x).T, activation)


def moments(x: torch.Tensor, A: torch.Tensor, activation: str = "relu", batches: int = 1) -> Moments:
    """Moments of inputs ``(T, I)`` and of their units, summed up in so many batches."""
    inputs, units = InputSums(x.shape[1], x.device), UnitSums(len(A), x.shape[1], x.device)
    for part in x.double().chunk(batches):
        wide = F.pad(part, (0, 1), value=1.0)
        inputs.add(wide)
        units.add(units_of(part, A, activation), wide)
    return Moments.of(inputs, units)


def text(rows: int = 30, length: int = 12, batch: int = 4, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Batches of random token ids of the tiny models, rows of different lengths, padded on the right."""
    noise = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 64, (rows, length), generator=noise)
    lengths = torch.randint(length // 2, length + 1, (rows,), generator=noise)
    mask = (torch.arange(length) < lengths[:, None]).long()
    both = zip((ids * mask).split(batch), mask.split(batch), strict=True)
    return [{"input_ids": part, "attention_mask": of_part} for part, of_part in both]


def row_by_row(batches: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """The same text without padding."""
    rows = [ids[mask.bool()] for part in batches for ids, mask in zip(*part.values(), strict=True)]
    return [{"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]} for ids in rows]


def shift(model: PeftModel) -> PeftModel:
    """Move all that is trained outside of A and B, so that losing it shows."""
    noise = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            parameter.data.add_(torch.randn(parameter.shape, generator=noise) * 0.1)
    return model
