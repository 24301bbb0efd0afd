"""Files and folders are whole or as they were."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from monolora.errors import InputError, RunError, SaveError
from monolora.files import filled_once, saving, write_file, write_json, write_tensors, write_text
from monolora.runs import Kind, claim

NOTE = Kind(name="note", record="note.json", keys=("note.text",), files=("cover.png",))


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        write_text(tmp_path / "b.txt", "")
        write_tensors(tmp_path / "c.safetensors", {"c": torch.zeros(2)})
        with filled_once(tmp_path / "cache" / "rows") as aside:
            assert aside is not None
            (aside / "c.txt").touch()
        with claim(tmp_path / "out", NOTE) as folder, folder.whole() as aside:
            (aside / "cover.png").touch()
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_write_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN and infinity are no JSON; a disk that takes no more leaves the old file."""
    path = tmp_path / "some.json"
    write_json(path, {"a": float("-inf"), "b": [float("nan"), 1.5], "c": "NaN"})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.5], "c": "NaN"}

    def full(self: Path, text: str) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_json(path, {"a": 1})
    assert os.listdir(tmp_path) == ["some.json"]
    assert json.loads(path.read_text())["c"] == "NaN"


def test_text_and_tensors(tmp_path: Path) -> None:
    """Also what has no UTF-8, and tensors that are no whole block of memory."""
    write_text(tmp_path / "b.txt", "größe\ud800\n")
    assert (tmp_path / "b.txt").read_bytes() == "größe?\n".encode()
    rows = torch.arange(6.0).view(2, 3)
    write_tensors(tmp_path / "c.safetensors", {"columns": rows.T})
    assert torch.equal(load_file(tmp_path / "c.safetensors")["columns"], rows.T)


def test_a_file_that_is_given_up(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fails(aside: Path) -> None:
        aside.write_text("half")
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        write_file(tmp_path / "a.txt", fails)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "old"}


def test_saving(tmp_path: Path) -> None:
    retry = "Free space, then give the same command again"
    with pytest.raises(SaveError, match=f"Cannot save into {tmp_path}: No space left. {retry}"), saving(tmp_path):
        raise OSError("No space left")
    with pytest.raises(SaveError, match=r"Cannot save into here: disk full\. Do this"), saving("here", "Do this."):
        raise RuntimeError("disk full")  # as torch.save does
    for error in (RunError("no disk's trouble"), InputError("nor this"), KeyError("a bug")):
        with pytest.raises(type(error)) as caught, saving(tmp_path):
            raise error
        assert caught.value is error


def test_a_cache_is_filled_once(tmp_path: Path) -> None:
    """Whichever of several comes first fills it; the others wait and take what it made."""
    fillings: list[int] = []

    def fill(number: int) -> str:
        with filled_once(tmp_path / "cache") as aside:
            if aside is not None:
                fillings.append(number)
                (aside / "rows").write_text("all of them")
        return (tmp_path / "cache" / "rows").read_text()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(fill, range(8))) == {"all of them"}
    assert len(fillings) == 1
    assert os.listdir(tmp_path) == ["cache"]


def test_a_damaged_cache_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "half").touch()
    with filled_once(tmp_path / "cache", lambda folder: (folder / "rows").exists()) as aside:
        assert aside is not None
        (aside / "rows").touch()
    assert os.listdir(tmp_path / "cache") == ["rows"]
    with pytest.raises(ValueError, match="given up"), filled_once(tmp_path / "other") as aside:
        raise ValueError("given up")
    assert os.listdir(tmp_path) == ["cache"]
