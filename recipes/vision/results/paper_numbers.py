"""The paper's numbers that a run is compared with: Table 1, and the settings they were measured with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CLASSES = 100

# Accuracy in %, of the linear probe trained with each of RATES' shares of wrong labels.
TABLE1: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "CIFAR-100": {
        "simclr": (54.5, 53.4, 52.8, 52.1, 51.2, 49.9, 49.5, 48.0, 45.0, 35.7),
        "sae": (54.4, 53.9, 53.4, 52.9, 51.9, 51.3, 50.5, 49.7, 47.1, 39.1),
        "ncl": (52.8, 53.9, 53.5, 52.6, 52.6, 52.3, 51.4, 49.5, 48.0, 44.9),
    },
    "ImageNet-100": {
        "simclr": (66.8, 63.1, 61.8, 60.1, 58.8, 56.4, 54.9, 53.1, 48.9, 34.4),
        "sae": (66.2, 65.3, 62.3, 60.5, 59.8, 59.7, 58.5, 55.9, 54.3, 45.9),
        "ncl": (66.7, 65.4, 64.4, 63.9, 62.4, 62.3, 60.6, 59.8, 57.6, 48.1),
    },
}

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "pretrain": {
        "epochs": 200,
        "batch_size": 256,
        "width": 64,
        "projector_hidden": 16384,
        "projector_out": 2048,
    },
    "sae": {"k": 256},
    "probe": {"epochs": 50},
}


def half_of(dataset: str) -> str | None:
    """The half of Table 1 that is of a data set, by its id or folder; None if the paper has none."""
    name = re.sub(r"[^a-z0-9]", "", Path(dataset).name.lower())
    return "CIFAR-100" if "cifar100" in name else "ImageNet-100" if "imagenet" in name else None


def accuracy(half: str | None, representation: str, rate: float) -> float | None:
    """The paper's accuracy in %, where it has one."""
    place = next((place for place, each in enumerate(RATES) if abs(each - rate) < 1e-9), None)
    return None if half is None or place is None else TABLE1[half][representation][place]


def gain(half: str | None, representation: str, rate: float) -> float | None:
    """The paper's accuracy less that of its CL, in points.

    Of its accuracies, not as printed: for SAE on ImageNet-100 without noise they differ by 0.6, and it prints 0.4.
    """
    mono, poly = accuracy(half, representation, rate), accuracy(half, "simclr", rate)
    return None if mono is None or poly is None else round(mono - poly, 1)
