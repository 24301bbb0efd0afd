"""A merge that fails: a full disk, Ctrl-C, a kill; status 1, and nothing half written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from monolora.recipes import merge as program
from monolora.recipes import merge_report
from tests.support import forks
from tests.support.merge_runs import Ended, contents, report_of

Trained = Callable[..., Path]
Cli = Callable[..., Ended]
Refused = Callable[..., str]
FEW = ("--verify-tokens", "100", "--task-samples", "0")


SIZES = {"dense": (), "lora": ("--as", "lora"), "exact": ("--method", "exact")}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(pages)``: a file system of so many pages of 4 KiB."""
    mounted = []

    def make(pages: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        options = ["-o", f"size={4096 * pages}"]
        done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def _pages(*files: Path) -> int:
    return sum(-(-file.stat().st_size // 4096) for file in files)


@pytest.mark.parametrize("form", SIZES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_full_disk(
    run_cli: Cli, trained: Trained, small_disk: Callable[[int], Path], tmp_path: Path, form: str, share: float
) -> None:
    assert run_cli("merge", trained(), tmp_path / "whole", *SIZES[form], *FEW).status == 0
    written = [file for file in (tmp_path / "whole").iterdir() if not file.name.startswith("merge_report")]
    disk = small_disk(max(2, int(share * _pages(*written))))
    ended = run_cli("merge", trained(), disk / "out", *SIZES[form], *FEW)
    assert ended.status == 1
    assert len(ended.err) == 1
    assert ended.err[0].startswith(f"error: Cannot save into {disk / 'out'}: ")
    assert "Nothing was left there. Free space, then merge again." in ended.err[0]
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("form", SIZES)
def test_disk_that_is_full_when_the_report_is_written(
    run_cli: Cli, trained: Trained, small_disk: Callable[[int], Path], tmp_path: Path, form: str
) -> None:
    """The merge stays whole, and can be verified when there is room."""
    assert run_cli("merge", trained(), tmp_path / "whole", *SIZES[form], *FEW).status == 0
    whole = contents(tmp_path / "whole")
    written = [tmp_path / "whole" / name for name in whole if name != merge_report.PAGE]
    disk = small_disk(_pages(*written) + 1)  # the lock file
    ended = run_cli("merge", trained(), disk / "out", *SIZES[form], *FEW)
    assert ended.status == 1
    assert len(ended.err) == 1
    assert ended.err[0].startswith(f"error: Cannot save into {disk / 'out'}: ")
    assert "The merge itself is whole. Free space, then run monolora verify." in ended.err[0]
    report = report_of(disk / "out")
    assert report["passed"] is None
    of_the_merge = [name for name in whole if not name.startswith("merge_report")]
    assert all((disk / "out" / name).stat().st_size == len(whole[name]) for name in of_the_merge)
    assert os.listdir(disk) == ["out"]
    assert not list((disk / "out").glob(".*"))
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    assert run_cli("verify", disk / "out", "--against", trained(), *FEW).status == 0
    assert report_of(disk / "out")["passed"] is True


def _interrupt(monkeypatch: pytest.MonkeyPatch, form: str, error: BaseException) -> None:
    """Make the writing of ``form`` end in ``error`` when all but the report is there."""

    def write(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        raise error

    name = f"export_{form}"
    original = getattr(program, name)
    monkeypatch.setattr(program, name, write)


@pytest.mark.parametrize("form", SIZES)
def test_ctrl_c(run_cli: Cli, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    _interrupt(monkeypatch, form, KeyboardInterrupt())
    ended = run_cli("merge", trained(), tmp_path / "a" / "out", *SIZES[form], *FEW)
    assert (ended.status, ended.err) == (130, ["stopped"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status"), [(OSError(errno.ENOSPC, "No space left on device"), 1), (KeyboardInterrupt(), 130)]
)
def test_an_overwrite_that_fails_leaves_the_earlier_merge(
    run_cli: Cli, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int
) -> None:
    out = tmp_path / "out"
    assert run_cli("merge", trained(), out, "--as", "lora", *FEW).status == 0
    before = contents(tmp_path)
    with monkeypatch.context() as patched:
        _interrupt(patched, "dense", error)
        assert run_cli("merge", trained(), out, "--overwrite", *FEW).status == status
    assert contents(tmp_path) == before
    assert run_cli("verify", out, "--against", trained(), *FEW).status == 0


KILLED = """
import os, signal, sys
from monolora import cli
from transformers import PreTrainedTokenizerBase

PreTrainedTokenizerBase.save_pretrained = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_while_writing(run_cli: Cli, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed = forks.run(KILLED, "merge", trained(), out, *FEW)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    aside, lock = sorted(tmp_path.iterdir())
    assert (aside.name.startswith(".out.aside-"), lock.name) == (True, ".out.lock")
    assert (aside / "model.safetensors").is_file()
    assert run_cli("merge", trained(), out, *FEW).status == 0
    assert os.listdir(tmp_path) == ["out"]
