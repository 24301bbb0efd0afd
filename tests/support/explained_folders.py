"""Folders as ``monolora explain`` writes them, with made-up numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

MODULES = [f"model.layers.{layer}.{kind}" for layer in range(6) for kind in ("q_proj", "v_proj")]
UNITS = 5  # a module


def _dataset(rng: np.random.Generator, name: str, units: int, is_signed: bool, is_labelled: bool) -> dict[str, Any]:
    firing = np.ones(units) if is_signed else rng.choice([0.0, 0.2, 0.7, 1.0], size=units)
    columns = {"firing_rate": firing, "effect": np.where(firing > 0, rng.exponential(0.01, units), 0.0)}
    for column in ("mean", "std", "max", "min"):
        columns[column] = rng.normal(size=units)
    labelled = ["consistency", "strongest_consistency", "information", "information_q"]
    for column in [*labelled, *["lowest_consistency"] * is_signed]:
        columns[column] = np.where((firing > 0) & is_labelled, rng.random(units), np.nan)
    return {f"{name}.{column}": value for column, value in columns.items()}


def explained_folder(
    folder: Path, seed: int = 0, is_signed: bool = False, modules: list[str] = MODULES, **run: Any
) -> pd.DataFrame:
    """A folder as ``monolora explain`` writes it: sst2 with labels, and plain texts without."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    frame = pd.DataFrame({"module": np.repeat(modules, UNITS), "index": np.tile(range(UNITS), len(modules))})
    for name, is_labelled in (("sst2", True), ("plain", False)):
        frame = frame.assign(**_dataset(rng, name, len(frame), is_signed, is_labelled))
    frame.to_parquet(folder / "features.parquet")
    about = {"texts": 872, "tokens": 20_000, "strongest": 20}
    record = {
        "adapter": f"runs/{folder.name}",
        "method": "LoRA" if is_signed else "MonoLoRA",
        "model": "tiny",
        "datasets": [
            {"name": "sst2", "fingerprint": "f1", "labels": {"neg": 428, "pos": 444}, "chance": 0.58, **about},
            {"name": "plain", "fingerprint": "f2", "labels": {}, "chance": None, **about},
        ],
    }
    (folder / "run.json").write_text(json.dumps({**record, **run}))
    return frame
