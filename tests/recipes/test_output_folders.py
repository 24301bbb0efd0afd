"""Nothing of the user's is lost through an output folder, and no two runs write into one: by the real programs."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from monolora.locks import locked
from monolora.recipes import sft
from monolora.recipes.training.trainer import SftTrainer
from tests.support import forks
from tests.support.merge_runs import Ended, contents
from tests.support.program_runs import QUICK, Outcome

Run = Callable[..., Outcome]
SHORT = ("--skip-eval", "--max-steps", "1", "--save-strategy", "no")


@pytest.fixture
def run_folder(trained: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a finished run, at ``tmp_path/run``."""
    return Path(shutil.copytree(trained(*SHORT), tmp_path / "run"))


@pytest.fixture
def keeps(run_sft: Run, tmp_path: Path) -> Callable[..., str]:
    """``keeps(*flags)``: why a run with ``--overwrite`` is refused; every byte is as it was."""

    def run(*flags: str | Path, name: str = "run") -> str:
        before = contents(tmp_path)
        outcome = run_sft(*SHORT, "--overwrite", *map(str, flags), name=name)
        assert contents(tmp_path) == before
        assert outcome.status == 2
        assert len([line for line in outcome.err if line.startswith("error: ")]) == 1
        return outcome.err[-1]

    return run


@pytest.mark.parametrize("path", [".", "..", "./", "../run", "{run}/", "{run}/deep/.."])
def test_the_working_directory(
    keeps: Callable[..., str], run_folder: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (run_folder / "deep").mkdir()
    monkeypatch.chdir(run_folder / "deep" if path == ".." else run_folder)
    assert "is the working directory, or holds it" in keeps("--output-dir", path.format(run=run_folder))


def test_the_base_model(keeps: Callable[..., str], trained: Callable[..., Path], tmp_path: Path) -> None:
    """All weights of an earlier run, finetuned further: by its path, another spelling, and through a link."""
    model = Path(shutil.copytree(trained(*SHORT, "--adapter", "none"), tmp_path / "run"))
    (tmp_path / "link").symlink_to("run")
    (tmp_path / "snapshot").mkdir()
    for file in model.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    (tmp_path / "x").mkdir()
    for path in (model, f"{model}/", tmp_path / "link", tmp_path / "snapshot", tmp_path / "x" / ".." / "run"):
        assert "which the run is made from" in keeps("--model", path)


def test_a_checkpoint_as_model(keeps: Callable[..., str], trained: Callable[..., Path], tmp_path: Path) -> None:
    flags = ("--skip-eval", "--max-steps", "1", "--save-steps", "1", "--adapter", "none")
    shutil.copytree(trained(*flags), tmp_path / "run")
    assert "which the run is made from" in keeps("--model", tmp_path / "run" / "checkpoint-1")


def test_data_in_the_output_folder(
    keeps: Callable[..., str], run_folder: Path, write_rows: Callable[..., str], tmp_path: Path
) -> None:
    rows = [{"prompt": "a", "completion": "b"}] * 4
    write_rows(rows, "run/rows.jsonl")
    assert "rows.jsonl in it is not of the earlier run" in keeps("--dataset", run_folder / "rows.jsonl")
    (run_folder / "rows.jsonl").rename(tmp_path / "rows.jsonl")
    (run_folder / "rows.jsonl").symlink_to(tmp_path / "rows.jsonl")
    assert "rows.jsonl in it is not of the earlier run" in keeps("--dataset", run_folder / "rows.jsonl")
    (run_folder / "rows.jsonl").unlink()
    (run_folder / "data").mkdir()
    (tmp_path / "rows.jsonl").rename(run_folder / "data" / "train.jsonl")
    assert "data/train.jsonl in it is not of the earlier run" in keeps("--dataset", run_folder / "data")


def test_a_chat_template_in_the_output_folder(keeps: Callable[..., str], run_folder: Path) -> None:
    template = run_folder / "chat_template.jinja"
    assert template.is_file()
    assert f"holds {template}, which the run is made from" in keeps("--chat-template-path", template)


def test_the_mirror_of_data_sets(keeps: Callable[..., str], run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONOLORA_DATA", str(run_folder))
    assert "is MONOLORA_DATA, or holds it" in keeps()


OTHERS: dict[str, dict[str, Any]] = {
    "an evaluation": {"status": "report done", "config": {}, "models": [], "sets": {}, "judges": [], "stages": {}},
    "a judge": {"status": "done", "config": {"train_splits": []}, "results": {"test": {}, "epoch": 1}},
    "an explanation": {"adapter": "", "datasets": [], "made": {"settings": {}, "adapter_fingerprint": ""}},
    "half a record": {"status": "done", "config": {}, "results": {}},
}


@pytest.mark.parametrize("name", OTHERS)
def test_results_of_other_programs(keeps: Callable[..., str], tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(OTHERS[name]))
    (tmp_path / "run" / "responses.jsonl").write_text("an answer\n")
    assert "exists and is no run" in keeps()


@pytest.mark.parametrize(
    "name", ["notes.txt", "eval/run.json", "checkpoint-1/notes.txt", "checkpoint-best/adapter_config.json", "train.py"]
)
def test_files_of_the_user(keeps: Callable[..., str], run_folder: Path, name: str) -> None:
    (run_folder / name).parent.mkdir(exist_ok=True)
    (run_folder / name).write_text("mine")
    assert f"{name} in it is not of the earlier run" in keeps()


def test_a_symlinked_checkpoint(keeps: Callable[..., str], run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "scratch" / "checkpoint-4" / "adapter_config.json").write_text("{}")
    (run_folder / "checkpoint-4").symlink_to(tmp_path / "scratch" / "checkpoint-4")
    assert "checkpoint-4 in it is not of the earlier run" in keeps()


def test_everything_that_a_run_writes_is_replaced(run_sft: Run, tmp_path: Path) -> None:
    """Checkpoints, their parts, and TensorBoard's files among it; full weights too."""
    flags = ("--skip-eval", "--max-steps", "2", "--save-steps", "1", "--report-to", "tensorboard")
    assert run_sft(*flags, "--adapter", "none").status == 0
    files = set(contents(tmp_path / "run"))
    assert {"model.safetensors", "checkpoint-1/optimizer.pt", "checkpoint-2/trainer_state.json"} <= files
    assert any("tfevents" in name for name in files)
    assert run_sft(*SHORT, "--overwrite").status == 0
    left = set(contents(tmp_path / "run"))
    assert "adapter_model.safetensors" in left
    assert not [name for name in left if name.startswith(("checkpoint-", "runs", "model"))]
    assert sorted(os.listdir(tmp_path)) == ["run"]


@pytest.mark.parametrize("by", [KeyboardInterrupt(), SystemExit(1)])
def test_stopped_before_the_first_checkpoint(run_sft: Run, monkeypatch: pytest.MonkeyPatch, by: BaseException) -> None:
    """The same command starts anew; resuming says that there is nothing to resume."""

    def stop(*args: Any, **kwargs: Any) -> None:
        raise by

    with monkeypatch.context() as patched:
        patched.setattr(SftTrainer, "training_step", stop)
        if isinstance(by, SystemExit):
            with pytest.raises(SystemExit):
                run_sft(*SHORT)
        else:
            assert run_sft(*SHORT).status == 130
    resumed = run_sft(*SHORT, "--resume-from-checkpoint")
    assert resumed.status == 2
    assert "There is no checkpoint to resume from" in resumed.err[-1]
    assert "Leave --resume-from-checkpoint out to start again." in resumed.err[-1]
    (resumed.folder / "notes.txt").write_text("mine")
    kept = run_sft(*SHORT)
    assert (kept.status, "notes.txt in it is not of" in kept.err[-1]) == (2, True)
    (resumed.folder / "notes.txt").unlink()
    again = run_sft(*SHORT)
    assert (again.status, again.record["status"]) == (0, "done")


def test_stopped_after_a_checkpoint(run_sft: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is something to lose: it is resumed, or replaced when asked for."""

    def stop(self: SftTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 1:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    step = SftTrainer.training_step
    flags = ("--skip-eval", "--max-steps", "2", "--save-steps", "1")
    with monkeypatch.context() as patched:
        patched.setattr(SftTrainer, "training_step", stop)
        assert run_sft(*flags).status == 130
    again = run_sft(*flags)
    assert again.status == 2
    assert "continue it with --resume-from-checkpoint, or replace it with --overwrite" in again.err[-1]
    assert run_sft(*flags, "--resume-from-checkpoint").status == 0


def test_rotation_removes_only_what_the_trainer_made(
    chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders that the user put beside the checkpoints stay, also where they are called alike."""

    def with_own(self: SftTrainer, *args: Any, **kwargs: Any) -> Any:
        folder = Path(self.args.output_dir)
        for name in ("checkpoint-best", "checkpoint-1-copy", "checkpoint-0"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "mine.txt").write_text(name)
        return step(self, *args, **kwargs)

    step = SftTrainer.training_step
    monkeypatch.setattr(SftTrainer, "training_step", with_own)
    flags = ("--skip-eval", "--max-steps", "3", "--save-steps", "1", "--save-total-limit", "1")
    folder = tmp_path / "run"
    assert sft.main(["--model", str(chat_model), "--output-dir", str(folder), *QUICK, *flags]) == 0
    folders = {path.name for path in folder.glob("checkpoint-*")}
    assert folders == {"checkpoint-3", "checkpoint-best", "checkpoint-1-copy", "checkpoint-0"}
    assert (folder / "checkpoint-best" / "mine.txt").read_text() == "checkpoint-best"


def test_a_folder_in_use(run_sft: Run, tmp_path: Path, chat_model: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to("real")
    for holder in (tmp_path / "run", tmp_path / "real", f"{tmp_path}/real/"):
        with locked(holder):
            before = contents(tmp_path)
            for flags in (SHORT, (*SHORT, "--overwrite"), (*SHORT, "--resume-from-checkpoint")):
                refused = run_sft(*flags)
                assert refused.status == 2
                assert f"run is in use by process {os.getpid()}. Wait for it" in refused.err[-1]
            assert contents(tmp_path) == before
            assert run_sft("--preview").status == 0  # it writes nothing
    assert run_sft(*SHORT).status == 0


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_modes_follow_the_umask(run_sft: Run, run_cli: Callable[..., Ended], tmp_path: Path, umask: int) -> None:
    """Others who may read the folder may read the weights: the safetensors library would give them to their owner."""
    unit = "model.layers.0.self_attn.q_proj:1"
    before = os.umask(umask)
    try:
        adapter = run_sft("--skip-eval", "--max-steps", "1", "--save-steps", "1").folder
        assert run_cli("prune", adapter, tmp_path / "pruned", "--units", unit).status == 0
        assert (
            run_cli("merge", adapter, tmp_path / "merged", "--verify-tokens", "50", "--task-samples", "0").status == 0
        )
    finally:
        os.umask(before)
    paths = [path for name in ("run", "pruned", "merged") for path in (tmp_path / name).rglob("*")]
    assert len([path for path in paths if path.suffix == ".safetensors"]) == 4
    modes = {str(path): oct(stat.S_IMODE(path.stat().st_mode)) for path in paths}
    assert modes == {str(path): oct((0o777 if path.is_dir() else 0o666) & ~umask) for path in paths}


PROGRAMS: dict[str, tuple[str, ...]] = {
    "merge": ("merge", "{adapter}", "{out}"),
    "prune": ("prune", "{adapter}", "{out}", "--units", "model.layers.0.self_attn.q_proj:1"),
    "repair": ("repair", "{adapter}", "--task", "demo", "--keep-prompts", "refusals", "--out", "{out}"),
    "judge": ("judge", "--output-dir", "{out}"),
    "explain": ("explain", "{adapter}", "--out", "{out}"),
    "explain, comparing": ("explain", "--compare", "a={adapter}", "b={adapter}", "--out", "{out}"),
    "evaluation": ("eval", "run", "--model", "{model}", "--judges", "refusal", "--out", "{out}"),
    "superposition": ("superposition", "run", "--out", "{out}"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_folder_in_use_by_another_program(
    run_cli: Callable[..., Ended], trained: Callable[..., Path], chat_model: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    words = [word.format(adapter=trained(*SHORT), model=chat_model, out=out) for word in PROGRAMS[name]]
    with locked(out):
        ended = run_cli(*words)
        assert ended.status == 2
        assert len(ended.err) == 1
        assert f"{out} is in use by process {os.getpid()}. Wait for it, end it, or take another folder." in ended.err[0]
        assert os.listdir(tmp_path) == [".out.lock"]
    assert os.listdir(tmp_path) == []


def _start(*words: str | Path) -> AbstractContextManager[forks.Program]:
    return forks.start("import runpy; runpy.run_module('monolora.recipes.sft', run_name='__main__')", *words)


def test_processes_that_race_for_a_folder(chat_model: Path, tmp_path: Path) -> None:
    """One of them trains, the other is refused; killed before its first checkpoint, it leaves nothing in the way."""
    out = tmp_path / "run"
    words = ("--model", chat_model, "--output-dir", out, *QUICK, "--skip-eval", "--save-steps", "1000000")
    endless = ("--max-steps", "1000000")
    with _start(*words, *endless) as first, _start(*words, *endless) as second:
        racing = [first, second]
        while all(process.poll() is None for process in racing):
            time.sleep(0.05)
        loser, winner = sorted(racing, key=lambda process: process.poll() is None)
        ended = loser.completed()
        assert ended.returncode == 2, ended.stderr
        assert f"run is in use by process {winner.pid}" in ended.stderr.splitlines()[-1]
        while not (out / "run.json").is_file():
            assert winner.poll() is None
            time.sleep(0.05)
        winner.kill()
        winner.wait()
        assert json.loads((out / "run.json").read_text())["status"] == "running"
    assert sft.main([*map(str, words), "--max-steps", "1"]) == 0
    assert json.loads((out / "run.json").read_text())["status"] == "done"
    assert os.listdir(tmp_path) == ["run"]
