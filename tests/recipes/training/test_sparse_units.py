"""``monolora sft`` with losses of units, revival and an annealed k: what is trained, logged, resumed and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from monolora.layer import MonoLoraLayer
from monolora.recipes.training import sparse_units
from monolora.recipes.training.sparse_units import STATE_FILE, annealed_k
from tests.support import forks
from tests.support.program_runs import QUICK, Outcome

Run = Callable[..., Outcome]
ALL = ("--sparsity-weight", "0.01", "--usage-weight", "0.1", "--skip-eval")
LARGE = ("--sparsity-weight", "2", "--usage-weight", "0.5", "--skip-eval")
SGD = ("--optim", "sgd", "--learning-rate", "0.5", "--train-sampling-strategy", "sequential")
IDLE = ("--activation", "topk:1", "--lora-r", "64")  # most units are off for a whole step
ADAPTER = "adapter_model.safetensors"


def _weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    assert outcome.status == 0, outcome.err
    return load_file(outcome.folder / ADAPTER)


def _logged(outcome: Outcome, name: str) -> list[float]:
    return [entry[name] for entry in outcome.record["history"] if name in entry]


def test_no_weight_is_no_flag(run_sft: Run) -> None:
    """Bit for bit; with weights the run is another, and its losses are logged."""
    plain = run_sft("--skip-eval", name="plain")
    zero = run_sft("--sparsity-weight", "0", "--usage-weight", "0", "--topk-anneal", "0", "--skip-eval", name="zero")
    assert {name: tensor.tolist() for name, tensor in _weights(zero).items()} == {
        name: tensor.tolist() for name, tensor in _weights(plain).items()
    }
    assert zero.losses == plain.losses
    assert not _logged(zero, "sparsity_loss")
    assert not (zero.folder / "checkpoint-4" / STATE_FILE).exists()
    sparse = run_sft(*LARGE, name="sparse")
    assert any(not torch.equal(tensor, _weights(plain)[name]) for name, tensor in _weights(sparse).items())
    first, *later = _logged(sparse, "sparsity_loss")
    assert first == 0  # as B is
    assert min(later) > 0
    assert len(_logged(sparse, "usage_loss")) == 4
    assert any(f"sparsity loss {later[-1]:.3g}" in line for line in sparse.err)
    assert sparse.record["config"]["sparsity_weight"] == 2


def test_a_larger_weight_leaves_a_smaller_effect(run_sft: Run) -> None:
    flags = ("--num-train-epochs", "4", "--skip-eval")
    effects = []
    for weight in (0.01, 3.0):
        outcome = run_sft(*flags, "--sparsity-weight", str(weight), name=str(weight))
        effects.append(_logged(outcome, "sparsity_loss")[-1] / weight)
    assert effects[1] < 0.5 * effects[0]


@pytest.mark.parametrize("flags", [(), ("--full-logits",)])
def test_accumulated_batches_are_one_batch(run_sft: Run, flags: tuple[str, ...]) -> None:
    flags = (*LARGE, *SGD, *IDLE, *flags)
    whole = run_sft(*flags, name="whole")
    parts = run_sft(*flags, "--per-device-train-batch-size", "1", "--gradient-accumulation-steps", "4", name="parts")
    for name, tensor in _weights(whole).items():
        torch.testing.assert_close(_weights(parts)[name], tensor, rtol=1e-3, atol=1e-5)
    for name in ("sparsity_loss", "usage_loss"):
        assert any(_logged(whole, name))
        assert _logged(parts, name) == pytest.approx(_logged(whole, name), rel=1e-3, abs=1e-5)


def test_packed_rows_are_padded_rows(run_sft: Run) -> None:
    """All of them in one: it has no attention mask, and padding in the end with ``--pad-to-multiple-of``."""
    flags = (*LARGE, *SGD, "--max-train-samples", "4", "--max-steps", "4", "--max-length", "400")
    padded = run_sft(*flags, name="padded")
    for more in ((), ("--pad-to-multiple-of", "512")):
        flat = run_sft(*flags, "--packing", *more, name=f"flat{len(more)}")
        assert flat.record["rows"]["train"] == 1
        for name in ("sparsity_loss", "usage_loss"):
            assert _logged(flat, name) == pytest.approx(_logged(padded, name), rel=1e-3, abs=1e-5)
        assert _logged(flat, "sparsity") == pytest.approx(_logged(padded, "sparsity"), abs=1e-3)


@pytest.mark.parametrize(
    "flags",
    [
        ("--activation", "topk:2", "--topk-anneal", "0.5", "--keep", "silence", "kl"),
        ("--packing", "--revive-after", "2", "--max-steps", "4"),
        ("--activation", "jumprelu", "--revive-after", "2"),
        ("--gradient-checkpointing", "--lora-dropout", "0.1", "--use-rslora"),
        ("--bf16", "true", "--dtype", "bfloat16", "--activation", "batchtopk:2", "--topk-anneal", "1"),
        ("--lora-target-modules", "q_proj", "embed_tokens", "--revive-after", "2"),
        ("--load-in-4bit", "--lora-r", "64"),
    ],
    ids=" ".join,
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")  # PEFT's
def test_it_combines(run_sft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]) -> None:
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MONOLORA_DATA", raising=False)
    keep = ("--keep-samples", "20", "--keep-answer-tokens", "4") if "--keep" in flags else ()
    outcome = run_sft(*ALL, *flags, *keep)
    assert all(tensor.isfinite().all() for tensor in _weights(outcome).values())
    assert _logged(outcome, "sparsity_loss")[-1] > 0
    assert len(_logged(outcome, "revived_units")) == (4 if "--revive-after" in flags else 0)


@pytest.mark.parametrize(
    "flags",
    [
        ("--revive-after", "2", "--lora-r", "32"),
        ("--activation", "topk:2", "--topk-anneal", "0.7", "--gradient-accumulation-steps", "2"),
    ],
    ids=" ".join,
)
def test_a_resumed_run_is_the_uninterrupted_one(
    run_sft: Run, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    """Bit for bit, from a step at which units are idle, but not long enough to be revived."""
    flags = (*ALL, "--save-steps", "1", "--max-steps", "6", *flags)
    _kill_units(monkeypatch)
    whole = run_sft(*flags, name="whole")
    assert _weights(whole)
    if "--revive-after" in flags:
        revived = _logged(whole, "revived_units")
        assert revived[2] < revived[-1]
    states = torch.load(whole.folder / "checkpoint-3" / STATE_FILE)["idle_steps"]
    assert "--revive-after" not in flags or max(int(steps.max()) for steps in states.values()) == 1
    part = whole.folder.parent / "part"
    shutil.copytree(whole.folder, part)
    for path in [*part.glob("checkpoint-[456]"), part / ADAPTER]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    resumed = run_sft(*flags, "--resume-from-checkpoint", str(part / "checkpoint-3"), name="part")
    for name, tensor in _weights(whole).items():
        assert torch.equal(_weights(resumed)[name], tensor), name
    for name in ("loss", "sparsity_loss", "usage_loss", "revived_units", "k"):
        assert _logged(resumed, name) == _logged(whole, name)


def _kill_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a new adapter, the last quarter of each module's units is off: all inputs of these rows are far below zero."""
    made = sparse_units.SparseUnits.on_step_begin

    def kill(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        made(self, args, state, control, **kwargs)
        if state.global_step in (1, 2):
            for layer in self.losses.layers.values():
                A = layer.lora_A["default"].weight.data
                A[-max(1, len(A) // 4) :] = 0

    monkeypatch.setattr(sparse_units.SparseUnits, "on_step_begin", kill)


def test_idle_units_are_revived(run_sft: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were off for two steps are on again afterwards."""
    _kill_units(monkeypatch)
    outcome = run_sft("--revive-after", "2", "--lora-r", "8", "--skip-eval", "--max-steps", "6", "--save-steps", "1")
    _, second, third, *_ = _logged(outcome, "revived_units")
    assert second < third
    last = torch.load(outcome.folder / "checkpoint-6" / STATE_FILE)
    assert last["revived"] == _logged(outcome, "revived_units")[-1]
    before, after = (load_file(outcome.folder / f"checkpoint-{step}" / ADAPTER) for step in (2, 3))
    names = [name for name in before if "monolora_A" in name]
    assert names
    for name in names:
        assert not before[name][-2:].any()
        assert after[name][-2:].any()
        assert not after[name.replace("monolora_A", "monolora_B")][:, -2:].any()
    idle = [steps[-2:] for steps in last["idle_steps"].values()]
    assert torch.stack(idle).eq(0).float().mean() > 0.5


def test_k_is_annealed(run_sft: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the rank to k, in every layer and evaluation; the saved adapter says k."""
    seen: list[tuple[bool, str]] = []
    activate = MonoLoraLayer._activate

    def noted(layer: MonoLoraLayer, z: torch.Tensor, name: str) -> torch.Tensor:
        seen.append((layer.training, layer.activation[name]))
        return activate(layer, z, name)

    monkeypatch.setattr(MonoLoraLayer, "_activate", noted)
    outcome = run_sft(
        "--activation", "topk:2", "--topk-anneal", "0.75", "--lora-r", "8", "--max-eval-samples", "2",
        "--validation-samples", "2", "--eval-strategy", "steps", "--eval-steps", "1",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert _logged(outcome, "k") == [8, 5, 2, 2]
    order = list(dict.fromkeys(seen))
    assert order == [
        (False, "topk:2"),  # before training
        *[(training, f"topk:{k}") for k in (8, 5, 2) for training in (True, False) if (k, training) != (2, False)],
    ]
    assert json.loads((outcome.folder / "adapter_config.json").read_text())["activation"] == "topk:2"
    assert json.loads((outcome.folder / "checkpoint-4" / "adapter_config.json").read_text())["activation"] == "topk:2"


def test_the_line_of_k() -> None:
    assert [annealed_k(16, 4, step, 8, 0.5) for step in range(8)] == [16, 12, 8, 4, 4, 4, 4, 4]
    assert annealed_k(16, 4, 7, 8, 1.0) == 4
    assert annealed_k(16, 4, 0, 8, 0.01) == 4
    assert [annealed_k(2, 4, step, 3, 1.0) for step in range(3)] == [2, 3, 4]  # all units either way


REFUSED = {
    "--sparsity-weight -1": "--sparsity-weight must be at least 0 and finite, got -1.0",
    "--sparsity-weight nan": "--sparsity-weight must be at least 0 and finite, got nan",
    "--usage-weight inf": "--usage-weight must be at least 0 and finite, got inf",
    "--revive-after 0": "--revive-after must be at least 1, got 0",
    "--topk-anneal 1.5 --activation topk:2": "--topk-anneal must be above 0 and at most 1, got 1.5",
    "--topk-anneal 0.5": "--activation relu has no k",
    "--adapter lora --sparsity-weight 1": "--sparsity-weight works on MonoLoRA's units; --adapter lora has none",
    "--adapter none --usage-weight 1": "--usage-weight works on MonoLoRA's units; --adapter none has none",
    "--usage-weight 1 --activation gelu": "units of gelu are never off",
    "--revive-after 5 --activation topk:2": "would take the places of others",
    "--revive-after 5 --activation batchtopk:2": "would take the places of others",
    "--revive-after 5 --optim adafactor": "the state of --optim adafactor cannot begin anew",
    "--sparsity-weight 1 --torch-compile": "--torch-compile does not show",
    "--topk-anneal 0.5 --activation topk:2 --validation-samples 2 --eval-strategy steps --load-best-model-at-end": (
        "--load-best-model-at-end would be of another k"
    ),
    '--sparsity-weight 1 --gradient-checkpointing --gradient-checkpointing-kwargs {"use_reentrant":true}': (
        "which the forward pass does not record"
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_work_is_refused(refused: Callable[..., str], words: str) -> None:
    assert REFUSED[words] in refused(*words.split())


def test_a_checkpoint_without_the_count_is_refused(run_sft: Run) -> None:
    flags = (*ALL, "--save-steps", "2")
    outcome = run_sft(*flags)
    (outcome.folder / "checkpoint-2" / STATE_FILE).unlink()
    resumed = run_sft(*flags, "--resume-from-checkpoint", str(outcome.folder / "checkpoint-2"))
    assert resumed.status == 2
    assert f"has no {STATE_FILE}" in resumed.err[-1]


@pytest.mark.slow
def test_two_processes_equal_one(run_sft: Run, chat_model: Path, tmp_path: Path) -> None:
    """Losses are of the tokens of both, and a unit is idle if it is so in both."""
    flags = [*LARGE, *IDLE, *SGD]
    where = ["--model", chat_model, "--output-dir", tmp_path / "two"]
    cpu = ["--config_file", forks.REPOSITORY / "recipes/accelerate/ddp-cpu.yaml"]
    program = "import sys; from monolora.recipes.sft import main; sys.exit(main())"
    for ended in forks.launch(cpu, program, *where, *QUICK, *flags, "--per-device-train-batch-size", "2"):
        assert ended.returncode == 0, ended.stderr[-3000:]
    one = run_sft(*flags, name="one")
    parallel = load_file(tmp_path / "two" / ADAPTER)
    for name, tensor in _weights(one).items():
        torch.testing.assert_close(parallel[name], tensor, rtol=1e-3, atol=1e-4)
    two = json.loads((tmp_path / "two" / "run.json").read_text())
    for name in ("loss", "sparsity_loss", "usage_loss"):
        assert any(_logged(one, name))
        found = [entry[name] for entry in two["history"] if name in entry]
        assert found == pytest.approx(_logged(one, name), rel=1e-3, abs=1e-4)
