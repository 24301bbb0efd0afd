"""What the tests of ``monolora merge`` and ``monolora verify`` share beside the fixtures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

# Ids that the tokenizer of the tiny models knows.
IDS = [[5, 300, 17, 42, 260, 99, 3], [270, 11, 8, 450, 31, 290, 64]]


class Ended(NamedTuple):
    """How a program ended.

    Attributes:
        status: the exit status.
        out: what it printed, its white space evened out.
        err: the lines of stderr, progress bars left out.
    """

    status: int
    out: str
    err: list[str]


def report_of(folder: Path) -> dict[str, Any]:
    """The ``merge_report.json`` in a folder."""
    return json.loads((folder / "merge_report.json").read_text())


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Of a model, on ``IDS``."""
    return model(input_ids=torch.tensor(IDS)).logits


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def negated(adapter: Path, folder: Path) -> Path:
    """A copy of an adapter with its effect the other way round."""
    shutil.copytree(adapter, folder)
    path = folder / "adapter_model.safetensors"
    tensors = {name: -tensor if "_B" in name else tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


# Another adapter, for sums of two.
OTHER = ("--seed", "7", "--lora-r", "4", "--lora-target-modules", "q_proj", "down_proj")


def sentences(count: int) -> Iterator[str]:
    things, words = ("soup", "lamp", "song", "hotel", "novel"), ("dull", "superb", "lovely", "broken", "bland", "ugly")
    for k in range(count):
        yield f"{k}: I found the {things[k % 5]} {words[k % 6]}, {k * 7919 % 997} times over"
