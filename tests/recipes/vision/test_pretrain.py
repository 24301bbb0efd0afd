"""``monolora vision pretrain``: what it leaves, how it resumes, and what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from monolora.errors import InputError, RunError, SaveError
from monolora.locks import locked
from monolora.recipes.vision import pretrain
from monolora.recipes.vision.pretraining import Pretraining
from monolora.recipes.vision.settings import Settings


@pytest.fixture
def short(settings: Settings, changed: Callable[..., Settings]) -> Settings:
    """SimCLR alone, four epochs, a checkpoint after every second."""
    return changed(settings, "pretrain", methods=("simclr",), epochs=4, save_epochs=2)


def _stop_before(monkeypatch: pytest.MonkeyPatch, epoch: int, error: BaseException) -> None:
    whole = Pretraining.run_epoch

    def run_epoch(self: Pretraining) -> Any:
        if self.epoch + 1 == epoch:
            raise error
        return whole(self)

    monkeypatch.setattr(Pretraining, "run_epoch", run_epoch)


def test_both_methods(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain.run(settings)
    out = Path(settings.common.out)
    for method in ("simclr", "ncl"):
        record = json.loads((out / f"{method}-0" / "pretrain.json").read_text())
        assert record["results"]["epochs"] == 2
        assert record["settings"]["method"] == method
        assert len((out / f"{method}-0" / "metrics.jsonl").read_text().splitlines()) == 2
        assert not (out / f"{method}-0" / "last.pt").exists()
    assert capsys.readouterr().out.count("epoch 2/2, loss ") == 2
    pretrain.run(settings)
    assert capsys.readouterr().out == "simclr-0: pretrained before\nncl-0: pretrained before\n"


def test_resumed_is_uninterrupted_bit_for_bit(
    short: Settings, changed: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain.run(short)
    other = changed(short, "common", out=str(tmp_path / "other"))
    with monkeypatch.context() as patch:
        _stop_before(patch, 4, KeyboardInterrupt())  # after a checkpoint at 2 and an epoch more
        with pytest.raises(KeyboardInterrupt):
            pretrain.run(other)
    pretrain.run(other)
    first, second = (Path(settings.common.out) / "simclr-0" for settings in (short, other))
    whole, resumed = load_file(first / "encoder.safetensors"), load_file(second / "encoder.safetensors")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (first, second)
    ]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    assert [line["epoch"] for line in lines[1]] == [1, 2, 3, 4]


def test_after_a_loss_that_is_not_finite_the_checkpoint_is_there(
    short: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stop_before(monkeypatch, 3, RunError("The loss is not finite"))
    with pytest.raises(RunError, match="not finite"):
        pretrain.run(short)
    checkpoint = torch.load(Path(short.common.out) / "simclr-0" / "last.pt", weights_only=True)
    assert checkpoint["state"]["epoch"] == 2


def test_a_full_disk(short: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SaveError, match=r"No space left on device.* free space, then give the same command again"):
        pretrain.run(short)
    assert not list((Path(short.common.out) / "simclr-0").glob(".*"))


def test_other_settings_are_refused(short: Settings, changed: Callable[..., Settings]) -> None:
    pretrain.run(short)
    with pytest.raises(InputError, match=r"simclr-0 holds an encoder of other settings: epochs 4 → 6\. Take another"):
        pretrain.run(changed(short, "pretrain", epochs=6))


def test_an_unfinished_run_of_other_settings_is_refused(
    short: Settings, changed: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _stop_before(patch, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            pretrain.run(short)
    with pytest.raises(InputError, match=r"temperature 0\.2 → 0\.5"):
        pretrain.run(changed(short, "pretrain", temperature=0.5))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04half"])
def test_a_damaged_checkpoint(short: Settings, content: bytes) -> None:
    folder = Path(short.common.out) / "simclr-0"
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"last\.pt is damaged .* Delete .*simclr-0 to start again"):
        pretrain.run(short)


def test_batches_larger_than_the_data(short: Settings, changed: Callable[..., Settings]) -> None:
    with pytest.raises(InputError, match="--batch-size 64 is more than the 48 training images"):
        pretrain.run(changed(short, "pretrain", batch_size=64))


def test_too_little_memory(short: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    _stop_before(monkeypatch, 1, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RunError, match=r"not enough memory\. Lower --batch-size, or raise --accumulation"):
        pretrain.run(short)


def test_both_methods_begin_with_the_same_weights(settings: Settings, changed: Callable[..., Settings]) -> None:
    still = changed(settings, "pretrain", epochs=1, learning_rate=0.0)
    pretrain.run(still)
    names = [
        name for name in load_file(Path(still.common.out) / "simclr-0" / "encoder.safetensors") if "weight" in name
    ]
    simclr, ncl = (
        load_file(Path(still.common.out) / f"{method}-0" / "encoder.safetensors") for method in ("simclr", "ncl")
    )
    assert all(torch.equal(simclr[name], ncl[name]) for name in names)


def test_an_encoder_in_use_and_weights_of_others(short: Settings) -> None:
    """Other seeds and methods may be at work beside it; nothing that is of no pretraining is written over."""
    folder = Path(short.common.out) / "simclr-0"
    with locked(folder), locked(folder.with_name("ncl-0")):
        with pytest.raises(InputError, match=f"simclr-0 is in use by process {os.getpid()}"):
            pretrain.run(short)
        assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "encoder.safetensors").write_text("mine")
    with pytest.raises(InputError, match=r"encoder\.safetensors exists and does not belong to a pretraining"):
        pretrain.run(short)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"encoder.safetensors": "mine"}
