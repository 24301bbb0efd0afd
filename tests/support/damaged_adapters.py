"""Ways to spoil an adapter folder, for the tests of what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Spoil = Callable[[Path], object]


def configure(**changes: Any) -> Spoil:
    """Other values in the config."""

    def spoil(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | changes))

    return spoil


def change(how: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    """Other tensors in the weights; ``how`` changes them in place."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        how(tensors)
        save_file(tensors, folder / WEIGHTS)

    return spoil


def truncate(name: str = WEIGHTS) -> Spoil:
    """The first half of a file."""

    def spoil(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return spoil


def remove(name: str) -> Spoil:
    """One file less."""
    return lambda folder: (folder / name).unlink()
