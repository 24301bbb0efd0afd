"""``run.json``: what a run was and what it gave, so that every number in a table can be traced to it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from monolora.errors import InputError
from monolora.recipes.arguments import Arguments

FILE = "run.json"
_PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "monolora")
# Flags that change nothing about what is trained: a resumed run may differ in them.
_FREE_FLAGS = frozenset(
    {
        "output_dir", "resume_from_checkpoint", "overwrite", "preview", "skip_eval", "max_eval_samples",
        "eval_max_new_tokens", "per_device_eval_batch_size", "logging_steps", "logging_strategy",
        "logging_first_step", "logging_dir", "report_to", "run_name", "project", "trackio_space_id",
        "trackio_bucket_id", "trackio_static_space_id", "save_steps", "save_strategy", "save_total_limit",
        "push_to_hub", "hub_model_id", "hub_token", "hub_strategy", "hub_private_repo", "hub_revision",
        "hub_always_push", "disable_tqdm", "dataloader_num_workers", "log_level", "log_level_replica",
        "dataset_num_proc", "use_cpu", "accelerator_config", "deepspeed", "fsdp", "fsdp_config",
        "parallelism_config",
    }
)  # fmt: skip


def resolved_config(arguments: Arguments) -> dict[str, Any]:
    """Every flag with the value it had, as JSON values; secrets left out."""
    merged: dict[str, Any] = {}
    for part in (
        arguments.training.to_dict(),
        *(vars(p) for p in (arguments.script, arguments.model, arguments.mixture, arguments.adapter)),
    ):
        merged.update(
            {
                key: value
                for key, value in part.items()
                if not key.endswith("_token") or key in ("eos_token", "pad_token")
            }
        )
    return json.loads(json.dumps(merged, default=str))


def provenance() -> dict[str, Any]:
    """Versions of the packages and the machine, and the git state of the code."""
    return {
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "machine": {"platform": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()},
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


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json`` aside and rename it: a reader never sees half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{FILE}.part"
    aside.write_text(json.dumps(record, indent=2, sort_keys=False) + "\n")
    aside.replace(folder / FILE)


def read(folder: Path) -> dict[str, Any] | None:
    """The record of the run in ``folder``, or None.

    Raises:
        InputError: if the file is there but is not JSON.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not JSON ({error.msg}). Remove the folder, or take another --output-dir."
        ) from error


def check_output_folder(folder: Path, overwrite: bool, resuming: bool) -> None:
    """Refuse a folder that would mix two runs.

    Raises:
        InputError: naming the mend.
    """
    if resuming or not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"--output-dir {folder} is a file. Take another name.")
    if not any(folder.iterdir()):
        return
    if not (folder / FILE).is_file():
        raise InputError(f"--output-dir {folder} has files of something else than a run. Take another folder.")
    if not overwrite:
        raise InputError(
            f"--output-dir {folder} holds another run. Take another folder, continue it with "
            "--resume-from-checkpoint, or replace it with --overwrite."
        )


def clear(folder: Path) -> None:
    """Remove the run in ``folder``; :func:`check_output_folder` has made sure that it is one."""
    if folder.exists():
        shutil.rmtree(folder)


def checkpoint_to_resume(flag: str | None, folder: Path, config: Mapping[str, Any]) -> Path | None:
    """The checkpoint that ``--resume-from-checkpoint`` means, checked against the run it belongs to.

    Args:
        flag: the flag's value: a folder, ``"latest"``, or None for a fresh run.
        folder: the run's output folder.
        config: this run's resolved flags.

    Raises:
        InputError: if there is no such checkpoint, or it is of a run with other settings (naming the flags).
    """
    if flag is None:
        return None
    found = get_last_checkpoint(str(folder)) if flag in ("latest", "True", "true") and folder.is_dir() else flag
    if found is None or not (Path(found) / "trainer_state.json").is_file():
        where = folder if flag in ("latest", "True", "true") else flag
        raise InputError(
            f"There is no checkpoint to resume from in {where}. Leave --resume-from-checkpoint out to start anew."
        )
    before = read(Path(found).parent)
    if before is None:
        raise InputError(f"{Path(found).parent} has no {FILE}, so it is unknown how {found} was made. Start anew.")
    changed = sorted(
        key
        for key in config.keys() & before["config"].keys()
        if key not in _FREE_FLAGS and config[key] != before["config"][key]
    )
    if changed:
        listed = ", ".join(f"--{key.replace('_', '-')} {before['config'][key]} → {config[key]}" for key in changed)
        raise InputError(f"{found} is of a run with other settings: {listed}. Give the same, or start anew.")
    return Path(found)
