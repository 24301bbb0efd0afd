"""``run.json`` and the output folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from monolora import run_record
from monolora.errors import InputError, SaveError
from monolora.recipes.training.arguments import parse, resolved_config

RESULTS = {"before": None, "after": None}


def test_write_and_read(tmp_path: Path) -> None:
    run_record.write(tmp_path / "new", {"config": {"a": 1}, "results": RESULTS, "nan": [float("nan"), float("inf")]})
    assert os.listdir(tmp_path / "new") == ["run.json"]
    assert run_record.read(tmp_path / "new") == {"config": {"a": 1}, "results": RESULTS, "nan": [None, None]}
    assert run_record.read(tmp_path) is None


def test_a_failed_write_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_record.write(tmp_path, {"config": {}, "results": RESULTS})

    def full(self: Path, text: str) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SaveError, match="No space left on device"):
        run_record.write(tmp_path, {"config": {"new": 1}, "results": RESULTS})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["run.json"]
    assert run_record.read(tmp_path) == {"config": {}, "results": RESULTS}


@pytest.mark.parametrize("text", ["{", "[]", "{}", "3", "\0"])
def test_read_refuses_what_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match="Remove the folder, or take another --output-dir"):
        run_record.read(tmp_path)


def test_read_says_the_mend_that_it_is_given(tmp_path: Path) -> None:
    for text in ("{", "{}"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(InputError, match="Do this"):
            run_record.read(tmp_path, "Do this.")


def test_no_secret_is_recorded() -> None:
    config = resolved_config(parse(["--hub-token", "hf_secret", "--eos-token", "</s>", "--run-name", "mine"]))
    assert "hf_secret" not in json.dumps(config)
    assert config["eos_token"] == "</s>"
    assert config["adapter"] == "monolora"
    assert config["lora_r"] == 8
    assert config["num_processes"] == 1


SHARDED = (
    "checkpoint-20/pytorch_model_fsdp_0/__0_0.distcp",
    "checkpoint-20/optimizer_0/.metadata",
    "checkpoint-20/pytorch_model_fsdp.bin",
    "checkpoint-20/optimizer.bin",
    "checkpoint-20/rng_state_1.pth",
    "checkpoint-20/global_step20/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
    "checkpoint-20/latest",
    ".saving/checkpoint-20/model-00001-of-00002.safetensors",
)


@pytest.mark.parametrize("path", SHARDED)
def test_files_of_sharded_runs_are_a_runs(path: str) -> None:
    """What FSDP and DeepSpeed write into a checkpoint, which no test here can train with."""
    assert run_record.SFT.foreign([path]) == []
    assert run_record.SFT.foreign([path.rpartition("/")[2] + "~", f"notes/{path}"]) != []
