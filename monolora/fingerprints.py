"""Short hashes of models and data, so that two runs can be seen to have had the same."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any


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
