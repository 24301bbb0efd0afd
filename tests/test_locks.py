"""One process at a time in a folder; what is locked is let go by a failure and by a kill."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from monolora.errors import InputError
from monolora.locks import locked, no_empty_folder
from tests.support.processes import kill


def test_workers_do_not_keep_the_lock(tmp_path: Path, holder: Callable[..., int]) -> None:
    """A forked one that outlives its parent, as a killed program's may."""
    go_on, waiting = os.pipe()

    def work(wait: Callable[[], None]) -> None:
        with locked(tmp_path / "out"):
            if os.fork() == 0:
                os.close(waiting)
                os.read(go_on, 1)  # until the test ends
                os._exit(0)
            wait()

    kill(holder(work))
    os.close(go_on)
    with locked(tmp_path / "out"):
        pass
    os.close(waiting)
    assert os.listdir(tmp_path) == []


def test_lock_files_of_others_are_left_alone(tmp_path: Path) -> None:
    lock = tmp_path / ".out.lock"
    lock.write_text("the combination")
    said = r"\.out\.lock is in the way: it is no lock file of monolora\. Move it away\."
    with pytest.raises(InputError, match=said), locked(tmp_path / "out"):
        pass
    assert lock.read_text() == "the combination"
    lock.unlink()
    lock.symlink_to("elsewhere")
    with pytest.raises(InputError, match="cannot be made"), locked(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == [".out.lock"]


def test_only_names_of_its_own_are_tidied_after_a_kill(tmp_path: Path) -> None:
    """Whatever a lock file says that was left."""
    names = ["thesis", ".out.part", ".out.aside-1.part", "../thesis", "", "."]
    (tmp_path / "a").mkdir()
    for name in ("thesis", "a/thesis", "a/.out.part", "a/.out.aside-1.part", "a/.out.aside-00000001.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    left = {"pid": 1, "host": "here", "aside": dict.fromkeys([*names, ".out.aside-00000001.part"], "part")}
    (tmp_path / "a" / ".out.lock").write_text(json.dumps(left))
    with locked(tmp_path / "a" / "out"):
        pass
    assert {path.parent.name for path in tmp_path.rglob("mine")} == {"thesis", ".out.part", ".out.aside-1.part"}
    assert len([*tmp_path.rglob("mine")]) == 4


def test_a_full_disk_lets_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(InputError, match="cannot be made: No space left on device"), locked(tmp_path / "out"):
            pass
    assert os.listdir(tmp_path) == []
    with locked(tmp_path / "out"):
        pass


def test_no_empty_folder(tmp_path: Path) -> None:
    with no_empty_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b").mkdir(parents=True)
    assert os.listdir(tmp_path) == []
    with no_empty_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "file").touch()
    assert (tmp_path / "a" / "b" / "file").exists()
