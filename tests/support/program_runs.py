"""How the tests run a program: the flags of a tiny run, and how it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

QUICK = [
    "--max-train-samples", "16", "--max-eval-samples", "6", "--per-device-train-batch-size", "4",
    "--learning-rate", "0.02", "--dtype", "float32", "--bf16", "false", "--logging-steps", "1",
]  # fmt: skip


class Outcome(NamedTuple):
    """How a program ended.

    Attributes:
        status: the exit status.
        folder: the output folder.
        out: what it printed.
        err: what it printed on stderr, progress bars left out.
    """

    status: int
    folder: Path
    out: str
    err: list[str]

    @property
    def record(self) -> dict[str, Any]:
        """The run's ``run.json``."""
        return json.loads((self.folder / "run.json").read_text())

    @property
    def losses(self) -> list[float]:
        """The logged losses, step by step."""
        return [entry["loss"] for entry in self.record["history"] if "loss" in entry]


def lines_of(err: str) -> list[str]:
    """The lines of a program's stderr, progress bars left out."""
    bars = ("it/s", "s/it", "examples/s", "━", "[00:00<?")
    return [line for line in err.replace("\r", "\n").splitlines() if line.strip() and not any(b in line for b in bars)]
