"""``monolora eval --data-parallel``: engines in processes of their own give the records of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monolora import cli
from monolora.eval import generate
from tests.support.evaluated import Evaluated
from tests.support.inline import run_inline


def responses(out: Path) -> list[str]:
    return sorted((out / "responses.jsonl").read_text().splitlines())


def test_two_engines_give_the_records_of_one(
    evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so does a run that is resumed with another number of them."""

    def run(name: str, *flags: str) -> list[str]:
        words = [*evaluated.run_flags(), "--skip-sparsity", "--out", str(tmp_path / name), *flags]
        assert cli.main(["eval", "generate", *words]) == 0
        return responses(tmp_path / name)

    with pytest.MonkeyPatch.context() as patch:
        run_inline(patch)
        whole = run("one")
    assert len(whole) == 33
    assert run("two", "--data-parallel", "2") == whole
    assert sorted(path.name for path in (tmp_path / "two" / "logs").iterdir()) == ["generate-1.log", "generate.log"]
    file = tmp_path / "two" / "responses.jsonl"
    file.write_text("\n".join(file.read_text().splitlines()[::2]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        run_inline(patch)
        assert run("two", "--data-parallel", "3") == whole
    assert "17 of 33 exist already" in capsys.readouterr().err


def test_engines_share_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a row, as tensor parallelism wants them."""
    job = {"settings": {"gpu_memory_utilization": None}}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for visible, parts in ((None, ["0,1", "2,3"]), ("7,5,GPU-1,0", ["7,5", "GPU-1,0"])):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        tasks = generate._tasks(job, 2, Path("log"))
        assert [task.environment for task in tasks] == [{"CUDA_VISIBLE_DEVICES": part} for part in parts]
        assert [task.job["share"] for task in tasks] == [(0, 2), (1, 2)]
        assert [task.job["settings"] for task in tasks] == [job["settings"]] * 2


def test_more_engines_than_gpus(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    words = [*evaluated.run_flags(), "--out", str(tmp_path / "out"), "--data-parallel", "8"]
    assert cli.main(["eval", "generate", *words]) == 2
    error = capsys.readouterr().err
    assert "--data-parallel 8 needs 8 GPUs, and 4 are visible. Take --data-parallel 4 or less." in error
    assert not (tmp_path / "out").exists()
