"""``run.json``: what a run was and what it gave, so that every number in a table can be traced to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, cast

from typing_extensions import TypedDict

from monolora.atomic import saving, write_json
from monolora.errors import InputError
from monolora.files import read_json, type_problem
from monolora.runs import MODEL_FILES, RUN, Kind

FILE = RUN
_CHECKPOINT_FILES = (
    r"(optimizer|scheduler|scaler|training_args|rng_state(_\d+)?)\.(pt|pth|bin)",
    r"(optimizer|pytorch_model_fsdp)(_\d+)?(_rank\d+)?(\.bin|/(\w+\.distcp|\.metadata))",  # FSDP
    r"global_step\d+/\w+\.pt|latest|zero_to_fp32\.py|trainer_state\.json",  # DeepSpeed but for the last
)


def _is_unfinished(record: Mapping[str, Any], paths: Iterable[str]) -> bool:
    """Whether a run ended before its first checkpoint: there is nothing to resume, and nothing to lose."""
    result = re.compile(r"checkpoint-.*|(.*/)?(adapter_)?model.*\.safetensors")
    return record.get("status") == "running" and not any(map(result.fullmatch, paths))


SFT = Kind(
    name="run",
    keys=("config.lora_r", "results.before", "fingerprints", "rows"),
    files=(
        *MODEL_FILES,
        r"training\.png|training_args\.bin",
        *(rf"(\.saving/)?checkpoint-\d+/({file})" for file in (*MODEL_FILES, *_CHECKPOINT_FILES)),
        *(
            rf"\.saving/({file})"
            for file in (*MODEL_FILES, r"run\.json|\.run\.json\.part|training\.png|training_args\.bin")
        ),
        r"\.saving/|\.run\.json\.part",
        r"runs/([^/]+/)+events\.out\.tfevents\.[^/]+",
    ),
    is_unfinished=_is_unfinished,
    is_whole=False,
    continued="continue it with --resume-from-checkpoint, ",
)


class RunConfig(TypedDict, total=False):
    """Flags of the run that other programs read."""

    model: str
    dtype: str | None
    load_in_4bit: bool
    load_in_8bit: bool
    dataset: str
    dataset_config: str | None
    dataset_train_split: str
    dataset_test_split: str
    max_train_samples: int | None
    max_eval_samples: int | None
    eval_max_new_tokens: int | None
    per_device_eval_batch_size: int
    drop_columns: list[str] | None
    allow_empty_answers: bool


class Validation(TypedDict):
    """The loss on held-out training examples."""

    n: int
    loss: float


class RunResults(TypedDict):
    """The task's scores, and the loss on held-out training examples."""

    before: dict[str, Any] | None
    after: dict[str, Any] | None
    validation: NotRequired[Validation | None]


class Fingerprints(TypedDict, total=False):
    """Of what the run was made from."""

    model: str
    train: str
    test: str


class RunRecord(TypedDict):
    """What other programs read of a record; it holds more."""

    config: RunConfig
    fingerprints: NotRequired[Fingerprints]
    results: RunResults
    status: NotRequired[str]


RESUME = "Earlier checkpoints are whole; free space, then resume with --resume-from-checkpoint."


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json``.

    Raises:
        SaveError: if the disk does not take it.
    """
    with saving(folder, RESUME):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, record)


def read(folder: Path, fix: str = "Remove the folder, or take another --output-dir.") -> RunRecord | None:
    """The record of the run in ``folder``, or None.

    Raises:
        InputError: if the file is there but is no record.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    record = read_json(path, fix, Any)
    if not isinstance(record, dict) or not {"config", "results"} <= record.keys():
        raise InputError(f"{path} is no record of a run. {fix}")
    if problem := type_problem(record, RunRecord):
        raise InputError(f"{path} is damaged: {problem} {fix}")
    return cast(RunRecord, record)
