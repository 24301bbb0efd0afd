"""Saving: a full disk, a kill or a leftover never costs an earlier checkpoint, and a run goes on from it."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from monolora.recipes.training import publication
from monolora.recipes.training.trainer import SftTrainer
from tests.support import forks
from tests.support.program_runs import QUICK

Run = Callable[..., Any]
SAVING = ("--save-steps", "2", "--skip-eval")


def _contents(folder: Path) -> dict[str, bytes]:
    """What a checkpoint holds, but for what has times, paths or the order of a set in it."""
    changing = ("trainer_state.json", "training_args.bin", "README.md", "adapter_config.json")
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "MONOLORA"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in changing}


def _same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture
def whole(run_sft: Run) -> Any:
    """A run that nothing happens to."""
    return run_sft(*SAVING, name="whole")


@pytest.fixture
def small_disk(tmp_path: Path, whole: Any) -> Iterator[Path]:
    """A file system with room for a checkpoint and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    pages = sum(-(-path.stat().st_size // 4096) for path in (whole.folder / "checkpoint-2").iterdir())
    size = int(4096 * (1.5 * pages + 8))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk(run_sft: Run, whole: Any, small_disk: Path) -> None:
    folder = small_disk / "run"
    outcome = run_sft(*SAVING, "--output-dir", str(folder))
    assert outcome.status == 1
    assert f"Cannot save into {folder}" in outcome.err[-1]
    assert "--resume-from-checkpoint" in outcome.err[-1]
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "run.json"]
    assert _contents(folder / "checkpoint-2") == _contents(whole.folder / "checkpoint-2")
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert run_sft(*SAVING, "--output-dir", str(folder), "--resume-from-checkpoint").status == 0
    assert _same_weights(folder, whole.folder)


@pytest.mark.parametrize("adapter", ["monolora", "none"])
def test_disk_that_takes_no_more_at_the_end(run_sft: Run, monkeypatch: pytest.MonkeyPatch, adapter: str) -> None:
    """The checkpoints are there, the finished model cannot be written."""
    flags = (*SAVING, "--adapter", adapter)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(*args: Any, **kwargs: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            original(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    original = publication.save
    with monkeypatch.context() as patched:
        patched.setattr(publication, "save", save)
        outcome = run_sft(*flags)
    assert outcome.status == 1
    assert "Cannot save into" in outcome.err[-1]
    assert sorted(path.name for path in outcome.folder.iterdir()) == ["checkpoint-2", "checkpoint-4", "run.json"]
    assert outcome.record["status"] == "running"
    assert run_sft(*flags, "--resume-from-checkpoint").record["status"] == "done"


KILLED = """
import os, signal, sys
from monolora.recipes import sft

def killed(self, output_dir):
    if "checkpoint-4" in output_dir:
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, output_dir)

from monolora.recipes.training.trainer import SftTrainer
original = SftTrainer._save_rng_state
SftTrainer._save_rng_state = killed
sft.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_while_saving(run_sft: Run, whole: Any, chat_model: Path, tmp_path: Path) -> None:
    """The second checkpoint is half written when the process is killed; the first one is whole, and so is the end."""
    folder = tmp_path / "killed"
    flags = ["--model", str(chat_model), "--output-dir", str(folder), *QUICK, *SAVING]
    killed = forks.run(KILLED, *flags)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert sorted(path.name for path in folder.iterdir()) == [".saving", "checkpoint-2", "run.json"]
    assert (folder / ".saving" / "checkpoint-4" / "adapter_model.safetensors").is_file()
    assert _contents(folder / "checkpoint-2") == _contents(whole.folder / "checkpoint-2")
    # With other steps between checkpoints, the half-written one must not come back under its name.
    flags = ("--save-steps", "3", "--skip-eval", "--resume-from-checkpoint")
    assert run_sft(*flags, name="killed").status == 0
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3", "checkpoint-4"}
    assert not (folder / ".saving").exists()
    assert _contents(folder / "checkpoint-4") == _contents(whole.folder / "checkpoint-4")
    assert _same_weights(folder, whole.folder)


def test_leftovers_are_not_published(run_sft: Run, whole: Any) -> None:
    leftover = whole.folder / ".saving" / "checkpoint-99"
    leftover.mkdir(parents=True)
    (leftover / "adapter_model.safetensors").write_bytes(b"half")
    assert run_sft(*SAVING, "--resume-from-checkpoint", str(whole.folder / "checkpoint-2"), name="whole").status == 0
    assert {path.name for path in whole.folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert not leftover.parent.exists()


def test_save_total_limit(run_sft: Run) -> None:
    outcome = run_sft("--save-steps", "1", "--save-total-limit", "2", "--skip-eval")
    assert {path.name for path in outcome.folder.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}


def test_a_schedule_free_optimizer_saves_its_average(run_sft: Run) -> None:
    """Training goes on at y = (1 - beta) z + beta x; x, the average, is what is scored and saved."""
    beta, at_end = 0.9, {}

    class Seen(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            at_end.update({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})

    made = SftTrainer.__init__

    def with_callback(trainer: Any, *args: Any, **kwargs: Any) -> None:
        made(trainer, *args, **kwargs)
        trainer.add_callback(Seen())

    flags = ("--optim", "schedule_free_adamw", "--lr-scheduler-type", "constant", "--save-steps", "4", "--skip-eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SftTrainer, "__init__", with_callback)
        outcome = run_sft(*flags)
    assert outcome.status == 0, outcome.err
    state = torch.load(outcome.folder / "checkpoint-4" / "optimizer.pt")["state"]
    saved = load_file(outcome.folder / "adapter_model.safetensors")
    assert len(state) == len(saved) == len(at_end)
    moved = 0
    for (name, y), slots in zip(at_end.items(), state.values(), strict=True):
        x = (y.float() - (1 - beta) * slots["z"].float()) / beta
        tensor = saved[name.replace(".lora_", ".monolora_").replace(".default", "")].float()
        torch.testing.assert_close(tensor, x, rtol=1e-4, atol=1e-6)
        moved += (tensor - y).abs().max() > 1e-4
    assert moved
    assert _same_weights(outcome.folder, outcome.folder / "checkpoint-4")
