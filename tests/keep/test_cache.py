"""The cache of what the base computes: the same bits, whatever happens to the disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from monolora.keep import cache
from monolora.keep.cache import Tensors, cached


def test_the_cache_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once made, read; another key is another entry; damage is made again; four entries stay, the newest used."""
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path))
    made = []

    def make() -> Tensors:
        made.append(1)
        return Tensors({"a": torch.randn(5, 3).bfloat16(), "b": torch.arange(4)}, {"a": "a", "c": "b"})

    first = cached("kind", ["key"], "cpu", make)
    again = cached("kind", ["key"], "cpu", make)
    assert len(made) == 1
    assert again.metadata == first.metadata == {"a": "a", "c": "b"}
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())
    (entry,) = (tmp_path / "kind").iterdir()
    entry.write_bytes(entry.read_bytes()[:50])
    cached("kind", ["key"], "cpu", make)
    assert len(made) == 2
    os.utime(entry, (1, 1))
    for number in range(4):
        cached("kind", [number], "cpu", make)
        os.utime(max((tmp_path / "kind").iterdir(), key=os.path.getmtime), (10 + number, 10 + number))
    assert len(list((tmp_path / "kind").iterdir())) == 4
    assert not entry.exists()
    cached("another kind", ["key"], "cpu", make)
    assert len(made) == 7


def test_a_full_disk_costs_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors are used all the same, and nothing half-written is left."""
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    made = cached("kind", ["key"], "cpu", lambda: Tensors({"a": torch.ones(2)}, None))
    assert made.tensors["a"].sum() == 2
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
