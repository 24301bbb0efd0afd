"""``--resume-from-checkpoint``: which checkpoint is meant, and whether this run may go on from it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, NotRequired

from transformers import TrainerState
from transformers.trainer_utils import get_last_checkpoint
from typing_extensions import TypedDict

from monolora import run_record
from monolora.checkpoint import check_weights_file
from monolora.errors import InputError, in_one_line
from monolora.files import read_json
from monolora.recipes.training.arguments import AdapterArguments, LoraArguments

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
# Flags that decide what the scores before training are about.
_SCORED_FLAGS = ("max_eval_samples", "eval_max_new_tokens")
# What a checkpoint must hold: in one file, or spread by FSDP or DeepSpeed. --save-only-model leaves only the weights.
_HOLDS = {
    "weights": ("*.safetensors", "pytorch_model_fsdp*", "global_step*"),
    "optimizer state": ("optimizer*", "global_step*"),
    "learning rate schedule": ("scheduler.pt",),
    "random state": ("rng_state*",),
}


class _Logged(TypedDict, total=False):
    """What a run goes by of a logged step."""

    loss: float
    step: int


class _State(TypedDict):
    """What the trainer goes on from."""

    global_step: int
    max_steps: int
    epoch: NotRequired[float | None]
    logging_steps: NotRequired[float]
    save_steps: NotRequired[float]
    train_batch_size: NotRequired[int | None]
    stateful_callbacks: NotRequired[dict[str, Any] | None]
    log_history: list[_Logged]


class Resumed(NamedTuple):
    """A checkpoint and the record of the run that it belongs to."""

    checkpoint: Path
    record: dict[str, Any]

    def scores_before(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The scores before training that the earlier run measured, if they are of the same rows as this run's."""
        if any(self.record["config"].get(flag) != config[flag] for flag in _SCORED_FLAGS):
            return None
        before = self.record["results"]["before"]
        assert before is None or isinstance(before, dict)
        return before

    def check_same_inputs(self, fingerprints: Mapping[str, str]) -> None:
        """Raises: InputError, if the model or the training data have changed since."""
        for name in ("model", "train"):
            if self.record.get("fingerprints", {}).get(name) != fingerprints[name]:
                what = {"model": "The weights of --model", "train": "The training examples of --dataset"}[name]
                raise InputError(f"{what} have changed since {self.checkpoint} was saved. Start anew.")


def find(flag: str | None, folder: Path, config: Mapping[str, Any]) -> Resumed | None:
    """The checkpoint that ``--resume-from-checkpoint`` means, checked against the run it belongs to.

    Args:
        flag: the flag's value: a folder, ``"latest"``, or None for a fresh run.
        folder: the run's output folder.
        config: this run's resolved flags.

    Raises:
        InputError: if there is no such checkpoint, it is incomplete, or it is of a run with other settings (naming
            the flags).
    """
    if flag is None:
        return None
    found = get_last_checkpoint(str(folder)) if flag == "latest" and folder.is_dir() else flag
    if found is None or not Path(found).is_dir():
        raise InputError(
            f"There is no checkpoint to resume from in {folder if flag == 'latest' else flag}. Leave "
            "--resume-from-checkpoint out to start anew."
        )
    checkpoint = Path(found)
    _check_complete(checkpoint)
    before = run_record.read(checkpoint.parent)
    if before is None:
        raise InputError(
            f"{checkpoint.parent} has no {run_record.FILE}: it is unknown how {found} was made. Start anew."
        )
    # Flags that an earlier version did not have stood at their defaults.
    earlier = {name: value for name, value in _defaults().items() if name in config} | before["config"]
    changed = sorted(key for key in config.keys() & earlier.keys() - _FREE_FLAGS if config[key] != earlier[key])
    if changed:
        listed = ", ".join(f"--{key.replace('_', '-')} {earlier[key]} → {config[key]}" for key in changed)
        raise InputError(f"{found} is of a run with other settings: {listed}. Give the same, or start anew.")
    return Resumed(checkpoint, before)


def _defaults() -> dict[str, Any]:
    """Of the flags that are ours; those of TRL and transformers may follow from others."""
    return {
        flag.name: flag.default
        for cls in (AdapterArguments, LoraArguments)
        for flag in fields(cls)
        if flag.name in vars(cls).get("__annotations__", {})
    }


def _check_complete(checkpoint: Path) -> None:
    """Check that the trainer will find what it needs; it passes over missing optimizer states in silence."""
    mend = "Resume from an earlier checkpoint, or start anew."
    try:
        state = read_json(checkpoint / "trainer_state.json", mend, _State)
        TrainerState(**state)
    except (InputError, TypeError) as error:
        reason = in_one_line(error).removesuffix(mend)
        raise InputError(
            f"{checkpoint} is no checkpoint: trainer_state.json is missing or damaged ({reason.rstrip('. ')}). {mend}"
        ) from error
    check_weights_file(str(checkpoint))
    for what, patterns in _HOLDS.items():
        if not any(any(checkpoint.glob(pattern)) for pattern in patterns):
            raise InputError(f"{checkpoint} has no {what}. {mend}")
    for file in checkpoint.glob("*.pt*"):
        if file.is_file() and not zipfile.is_zipfile(file):
            raise InputError(f"{file} is damaged. {mend}")
