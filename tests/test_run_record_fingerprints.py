"""Hashes of models and data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from monolora.run_record import fingerprint_files, fingerprint_rows, fingerprint_settings


def test_fingerprints_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    first = fingerprint_files(tmp_path)
    assert len(first) == 16
    (tmp_path / "config.json").write_text("other")
    assert fingerprint_files(tmp_path) == first
    (tmp_path / "a.safetensors").write_bytes(b"Weights")
    assert fingerprint_files(tmp_path) != first


def test_fingerprints_trust_the_names_of_the_hubs_blobs(tmp_path: Path) -> None:
    """The hub's cache names blobs by their sha256; files of gigabytes are not read again."""
    plain, cached = tmp_path / "plain", tmp_path / "cached"
    plain.mkdir()
    cached.mkdir()
    (plain / "a.safetensors").write_bytes(b"weights")
    blob = tmp_path / hashlib.sha256(b"weights").hexdigest()
    blob.write_bytes(b"not read")
    (cached / "a.safetensors").symlink_to(blob)
    assert fingerprint_files(cached) == fingerprint_files(plain)


def test_fingerprints_of_rows() -> None:
    assert fingerprint_rows(["ab", "c"]) != fingerprint_rows(["a", "bc"])
    assert fingerprint_rows(["a", "b"]) != fingerprint_rows(["b", "a"])
    assert fingerprint_rows(iter(["ä"])) == fingerprint_rows(["ä"])


def test_settings_are_the_same_in_any_order(tmp_path: Path) -> None:
    """PEFT's sets of modules come out in another order in every process."""
    said = [
        {"r": 8, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"a": 1, "b": 2}, "sizes": [2, 1]},
        {"rank_pattern": {"b": 2, "a": 1}, "target_modules": ["v_proj", "q_proj"], "r": 8, "sizes": [2, 1]},
        {"rank_pattern": {"b": 2, "a": 1}, "target_modules": ["v_proj", "q_proj"], "r": 8, "sizes": [1, 2]},
    ]
    found = []
    for number, each in enumerate(said):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(each))
        found.append(fingerprint_settings(path))
    assert found[0] == found[1] != found[2]
