"""Training with the common prefix of a batch computed once, against training on whole rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from monolora import shared_prefix as module
from monolora.recipes.training import trainer
from tests.support.program_runs import Outcome

pytestmark = pytest.mark.slow
ADAPTER = "adapter_model.safetensors"


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of the prefixes of all batches that are trained on."""
    found: list[int] = []
    share = trainer.shared_prefix

    @contextmanager
    def noted(*args: Any) -> Iterator[int]:
        with share(*args) as length:
            found.append(length)
            yield length

    monkeypatch.setattr(trainer, "shared_prefix", noted)
    return found


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--adapter", "lora", "--gradient-accumulation-steps", "2"),
        ("--adapter", "none"),
        ("--keep", "silence", "kl", "replay:0.1", "--keep-samples", "20", "--keep-answer-tokens", "4"),
    ],
)
def test_it_trains_as_on_whole_rows(
    run_sft: Callable[..., Outcome],
    lengths: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    flags: tuple[str, ...],
) -> None:
    """Losses, sparsity and trained weights, to rounding."""
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MONOLORA_DATA", raising=False)
    flags = (*flags, "--optim", "sgd", "--learning-rate", "0.1", "--skip-eval")
    shared = run_sft(*flags, name="shared")
    assert max(lengths) > 0
    lengths.clear()
    monkeypatch.setattr(module, "SAVED", 2)
    whole = run_sft(*flags, name="whole")
    assert set(lengths) == {0}
    histories = [[entry for entry in run.record["history"] if "loss" in entry] for run in (shared, whole)]
    assert len(histories[0]) == len(histories[1]) > 1
    for one, other in zip(*histories, strict=True):
        names = {"loss", "sparsity", "num_tokens", "mean_token_accuracy", "keep_silence", "keep_kl"} & other.keys()
        assert {"loss", "num_tokens"} <= names <= one.keys()
        assert {name: one[name] for name in names} == pytest.approx(
            {name: other[name] for name in names}, rel=1e-4, abs=1e-5
        )
    file = ADAPTER if (shared.folder / ADAPTER).is_file() else "model.safetensors"
    weights, expected = (load_file(run.folder / file) for run in (shared, whole))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-5)


def test_what_cannot_share_says_so_once(run_sft: Callable[..., Outcome], lengths: list[int]) -> None:
    outcome = run_sft("--lora-dropout", "0.1", "--skip-eval")
    assert outcome.status == 0
    assert set(lengths) == {0}
    said = [line for line in outcome.err if "common prefix" in line]
    assert said == ["The common prefix of a batch is computed for every row: dropout is drawn for each row."]
