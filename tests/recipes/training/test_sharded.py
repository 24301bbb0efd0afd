"""Two processes under FSDP2 and DeepSpeed, against one: losses, weights, scores, sparsities and what is kept."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import forks
from tests.support.program_runs import QUICK

pytestmark = pytest.mark.slow
SFT = """
import sys
from tests.support.sharding import allow_cpu
allow_cpu()
from monolora.recipes.sft import main
sys.exit(main())
"""
STEPS = [
    "--optim", "adamw_torch", "--adam-epsilon", "1e-3",  # so that rounding does not turn a step around
    "--train-sampling-strategy", "sequential", "--save-steps", "2",
]  # fmt: skip
KEPT = [
    *STEPS, "--eval-strategy", "steps", "--eval-steps", "4", "--validation-samples", "4", "--eval-task",
    "--metric-for-best-model", "refusal_margin", "--eval-max-new-tokens", "6",
    "--keep", "silence:0.5", "kl", "replay:0.2", "--keep-samples", "20", "--keep-answer-tokens", "4",
]  # fmt: skip
FULL = [*STEPS, "--adapter", "none", "--learning-rate", "0.005", "--eval-max-new-tokens", "12"]
DEEPSPEED = """
deepspeed_config:
  deepspeed_config_file: {file}
  zero3_init_flag: false
"""
needs_deepspeed = pytest.mark.skipif(
    not forks.DEEPSPEED_FOLDER.is_dir() and importlib.util.find_spec("deepspeed") is None,
    reason=f"DeepSpeed is not in {forks.DEEPSPEED_FOLDER}: pip install --no-deps --target it deepspeed hjson msgpack",
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path_factory.getbasetemp() / "sharded-cache"))
    monkeypatch.delenv("MONOLORA_DATA", raising=False)


@pytest.fixture
def launch(chat_model: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """``launch(engine, folder, *flags, processes=2)``: a run of several processes; what each printed."""

    def run(engine: str, folder: Path, *flags: str, processes: int = 2, status: int = 0) -> list[str]:
        config = tmp_path / f"{engine}.yaml"
        fsdp = (forks.REPOSITORY / "recipes/accelerate/fsdp2.yaml").read_text().replace("bf16", "'no'")
        if engine == "fsdp2":
            config.write_text(fsdp.replace("FULL_STATE_DICT", "SHARDED_STATE_DICT"))
        else:
            # Every weight is partitioned, however small.
            zero = {"stage": int(engine[-1]), "stage3_param_persistence_threshold": 0}
            settings: dict[str, Any] = {
                "zero_optimization": zero | {"stage3_gather_16bit_weights_on_model_save": True},
                "zero_allow_untested_optimizer": True,
            }
            for name in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
                settings[name] = "auto"
            file = tmp_path / f"{engine}.json"
            file.write_text(json.dumps(settings))
            kind, _, _ = fsdp.replace("FSDP\n", "DEEPSPEED\n").partition("mixed_precision")
            config.write_text(kind + DEEPSPEED.format(file=file))
        where = ["--model", chat_model, "--output-dir", folder]
        batch = ["--per-device-train-batch-size", str(4 // processes)]
        options = ["--config_file", config, "--num_processes", str(processes)]
        ended = forks.launch(options, SFT, *where, *QUICK, *batch, *flags)
        assert [each.returncode for each in ended] == [status] * processes, ended[0].stderr[-3000:]
        return [each.stdout + each.stderr for each in ended]

    return run


def _record(folder: Path) -> dict[str, Any]:
    record = json.loads((folder / "run.json").read_text())
    del record["results"]["seconds"]
    return record


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def _check_equal(folder: Path, one: Path, weights: str = "adapter_model.safetensors") -> None:
    parts, whole = _record(folder), _record(one)
    losses, expected = ([e["loss"] for e in record["history"] if "loss" in e] for record in (parts, whole))
    assert losses == pytest.approx(expected, rel=1e-6)
    for name in ("before", "after", "sparsity", "trained_parameters"):
        assert parts["results"][name] == whole["results"][name], name
    assert list(_numbers(parts["results"])) == pytest.approx(list(_numbers(whole["results"])), rel=1e-4, abs=1e-6)
    for measure in ("sparsity", "dead_units"):  # over the tokens of all processes
        logged, own = ([e.get(measure) for e in record["history"]] for record in (parts, whole))
        assert logged == own
    tensors = load_file(one / weights)
    for name, tensor in load_file(folder / weights).items():
        torch.testing.assert_close(tensor, tensors[name], rtol=0, atol=1e-6)
    assert len(tensors) == len(load_file(folder / weights))


def _without_end(folder: Path) -> Path:
    """A copy of a run, to be resumed from its checkpoint before the last."""
    stopped = folder.with_name("resumed")
    shutil.copytree(folder, stopped)
    *_, last = sorted(stopped.glob("checkpoint-*"))
    shutil.rmtree(last)
    return stopped


def test_fsdp2_equals_one(launch: Callable[..., list[str]], trained: Callable[..., Path], tmp_path: Path) -> None:
    """All keepers, scores while training and around it; of the sharded state an adapter folder is left.

    Resumed by one process, the run is the same up to rounding.
    """
    folder = tmp_path / "run"
    launch("fsdp2", folder, *KEPT)
    assert _record(folder)["results"]["keeping"]["sets"]
    _check_equal(folder, trained(*KEPT))
    resumed = _without_end(folder)
    (printed,) = launch("fsdp2", resumed, *KEPT, "--resume-from-checkpoint", processes=1)
    assert "The rows of a step are divided in another way than before" in printed
    _check_equal(resumed, folder)


@needs_deepspeed
def test_zero_3_equals_one(launch: Callable[..., list[str]], trained: Callable[..., Path], tmp_path: Path) -> None:
    """Resumed by as many processes, it is the same bit for bit; DeepSpeed reads no checkpoint of another number."""
    folder = tmp_path / "run"
    launch("zero-3", folder, *KEPT)
    _check_equal(folder, trained(*KEPT))
    resumed = _without_end(folder)
    refused = launch("zero-3", resumed, *KEPT, "--resume-from-checkpoint", processes=1, status=2)
    assert "--num-processes 2 → 1" in refused[0]
    launch("zero-3", resumed, *KEPT, "--resume-from-checkpoint")
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, tensor in load_file(resumed / "adapter_model.safetensors").items():
        assert torch.equal(tensor, tensors[name])


@needs_deepspeed
def test_zero_2_equals_one(launch: Callable[..., list[str]], trained: Callable[..., Path], tmp_path: Path) -> None:
    launch("zero-2", tmp_path / "run", *STEPS)
    _check_equal(tmp_path / "run", trained(*STEPS))


def test_full_finetuning(launch: Callable[..., list[str]], trained: Callable[..., Path], tmp_path: Path) -> None:
    launch("fsdp2", tmp_path / "run", *FULL)
    _check_equal(tmp_path / "run", trained(*FULL), "model.safetensors")
