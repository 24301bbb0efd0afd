"""Timing sides against each other in one run: they take turns, in another order in every round."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from monolora.hub import SMOLLM2

Seconds = dict[str, list[float]]
GROUPS = 5


def in_turns(sides: Mapping[str, Callable[[], float | None]], rounds: int, warmup: int = 1) -> Seconds:
    """Seconds of each side in each round: those that it returns, or that its call took; on a GPU, until it is done."""
    seconds: Seconds = {name: [] for name in sides}
    shuffled = random.Random(0)  # a side is the faster for what the one before it left in the caches
    for number in range(-warmup, rounds):
        for name in shuffled.sample(list(sides), len(sides)):
            start = time.perf_counter()
            own = sides[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start if own is None else own)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "smallest": min(values), "largest": max(values)}


def of_groups(seconds: Seconds, ratio: Callable[[Mapping[str, float]], float]) -> dict[str, float]:
    """A ratio of the medians over all rounds; smallest and largest are of fifths of the rounds, in their order."""
    rounds = len(next(iter(seconds.values())))
    size = max(1, rounds // GROUPS)
    parts = [
        ratio({name: statistics.median(values[start : start + size]) for name, values in seconds.items()})
        for start in range(0, rounds - size + 1, size)
    ]
    whole = ratio({name: statistics.median(values) for name, values in seconds.items()})
    return {"median": whole, "smallest": min(parts), "largest": max(parts)}


def flag_parser(description: str | None) -> argparse.ArgumentParser:
    """With the flags that all have: ``--model`` and ``--out``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2, help="a path or a hub id (default: %(default)s)")
    parser.add_argument("--out", help="write all numbers here, in JSON")
    return parser


def save(report: Mapping[str, Any], out: str | None) -> None:
    """Into ``--out``, if it was given."""
    if out:
        Path(out).write_text(json.dumps(report, indent=2) + "\n")


def machine(*packages: str) -> dict[str, Any]:
    """Where it ran, and with what."""
    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _processor() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"
