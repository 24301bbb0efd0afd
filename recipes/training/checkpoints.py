"""Atomic checkpoints, and the lookup of ``--resume-from-checkpoint``."""

from __future__ import annotations

import math
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, cast

import torch
from accelerate import PartialState
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import CONFIG_NAME
from torch import nn
from torch.distributed.fsdp import StateDictType
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import SchedulerType, get_last_checkpoint
from typing_extensions import TypedDict

from monolora import run_record
from monolora.checkpoint import check_weights_file
from monolora.cli.flags import spelled
from monolora.errors import InputError, in_one_line
from monolora.files import follow_umask, read_json, saving, write_json
from monolora.model_files import (
    any_generation_config,
    check_adapter_files,
    check_model_files,
    save_generation_config,
    write_older_names,
)
from monolora.recipes.training.arguments import LATEST, AdapterArguments, LoraArguments, RunArguments
from monolora.recipes.training.sparse_units import SparsityArguments
from monolora.run_record import RunRecord, after_full_disk
from monolora.terminal import say

STAGING = ".saving"
REFERENCE = "ref"  # TRL's name of the frozen copy of an adapter that is trained further on preferences
# Flags that do not affect the trained weights: a resumed run may differ in them.
_FREE_FLAGS = frozenset(
    {
        "output_dir", "resume_from_checkpoint", "overwrite", "preview", "skip_eval", "max_eval_samples",
        "eval_max_new_tokens", "per_device_eval_batch_size", "logging_steps", "logging_strategy",
        "logging_first_step", "logging_dir", "report_to", "run_name", "project", "trackio_space_id",
        "trackio_bucket_id", "trackio_static_space_id", "save_steps", "save_strategy", "save_total_limit",
        "push_to_hub", "hub_model_id", "hub_token", "hub_strategy", "hub_private_repo", "hub_revision",
        "hub_always_push", "disable_tqdm", "dataloader_num_workers", "log_level", "log_level_replica",
        "dataset_num_proc", "use_cpu", "accelerator_config", "deepspeed", "fsdp", "fsdp_config",
        "parallelism_config", "keep_report", "card_note",
        "max_steps", "num_train_epochs",  # how far a run goes
    }
)  # fmt: skip
# Flags that only divide the rows of a step.
_LAYOUT = frozenset({"num_processes", "per_device_train_batch_size", "gradient_accumulation_steps"})
# Learning rates that do not depend on the number of steps.
_ENDLESS_SCHEDULES = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau", "greedy")
_INPUTS = {
    "model": "The weights of --model",
    "adapter": "The weights of --adapter-from",
    "train": "The training examples of --dataset",
    "sequences": "The sequences that --conversations makes of the training examples",
    "anchors": "The anchors of --keep-prompts, or the base's answers to them,",
}
# Flags that determine the scores before training.
_SCORED_FLAGS = ("max_eval_samples", "eval_max_new_tokens")
# What a checkpoint must hold: in one file, or spread by FSDP or DeepSpeed. --save-only-model leaves only the weights.
_HOLDS = {
    "weights": ("*.safetensors", "pytorch_model_fsdp*", "global_step*"),
    "optimizer state": ("optimizer*", "global_step*"),
    "learning rate schedule": ("scheduler.pt",),
    "random state": ("rng_state*",),
}


class AtomicCheckpoints(Trainer):
    """A trainer whose checkpoints and model are on the disk whole or not at all, and from which a run resumes.

    Mix it in before the trainer: ``class SftTrainer(AtomicCheckpoints, SFTTrainer)``. Files are written into a folder
    aside, read again and compared with the model, and then renamed: a full disk or a kill leaves earlier checkpoints
    intact.

    The folder aside is not :mod:`monolora.files`'s: under FSDP and DeepSpeed all processes write into it, and only one
    of them holds the run's lock.
    """

    base_id: str | None = None  # of a base that was named by it: what adapter_config.json says, on all machines
    _staging: Path | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._adapter_shapes: dict[str, torch.Size] | None = None  # by their names on the disk
        if isinstance(self.model, PeftModel):  # now, before FSDP or DeepSpeed spread the tensors
            tensors = get_peft_model_state_dict(self.model)
            self._adapter_shapes = {name: tensor.shape for name, tensor in tensors.items()}

    @contextmanager
    def staged(self, output: Path) -> Iterator[Path]:
        """A folder aside for all processes to write into; what the main one leaves in it at the end is removed.

        Args:
            output: the run's folder.

        Raises:
            SaveError: if the disk does not take what the block writes.
        """
        staging = output / STAGING
        self._remove_staging(staging)  # what a killed run may have left
        self.accelerator.wait_for_everyone()
        try:
            with saving(output, after_full_disk(output)):
                yield staging
        finally:
            self._remove_staging(staging)

    def _remove_staging(self, staging: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Whole, in checkpoints too: of FSDP's sharded state the trainer itself would write nothing that loads."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is None or plugin.state_dict_type == StateDictType.FULL_STATE_DICT:
            super().save_model(output_dir, _internal_call)
            return
        state_dict = self.accelerator.get_state_dict(self.model)  # every process has a part of it
        if self.args.should_save:
            self._save(output_dir, state_dict=state_dict)

    def check_saved(self, folder: Path) -> None:
        """Read the written files again, and compare them with the model.

        Raises:
            RunError: naming the first tensor that is missing or of another shape.
        """
        if self._adapter_shapes is not None:
            check_adapter_files(folder, self._adapter_shapes)
        else:
            check_model_files(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the generation config too, also beside an adapter: it holds the end tokens of answers."""
        folder = Path(output_dir or self.args.output_dir or "")
        model: Any = self.accelerator.unwrap_model(self.model)
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        with any_generation_config(base, folder):
            super()._save(output_dir, state_dict)
        if isinstance(model, PeftModel):
            shutil.rmtree(folder / REFERENCE, ignore_errors=True)  # PEFT saves all adapters; this one is made again
            save_generation_config(base.generation_config, folder)
            if self.base_id is not None:
                config = read_json(folder / CONFIG_NAME, "Save again.")
                write_json(folder / CONFIG_NAME, config | {"base_model_name_or_path": self.base_id})
        write_older_names(folder)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the recipe writes a card with the measured numbers at the end."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL's; a schedule-free optimizer leaves the average of its weights."""
        output = super().train(*args, **kwargs)
        self._take_average()
        return output

    def _take_average(self) -> None:
        """Set the average that a schedule-free optimizer keeps of its weights: that is the model to score and save.

        The next training step starts from the trained weights; other optimizers have no average.
        """
        optimizer: Any = self.optimizer  # accelerate's, which passes this on to an optimizer that has it
        if optimizer is not None:
            optimizer.eval()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._take_average()
        final = Path(self._get_output_dir(trial))
        with self.staged(final) as self._staging:
            try:
                super()._save_checkpoint(model, trial)
                self._name_best(self._staging, final)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    for checkpoint in self._staging.glob("checkpoint-*"):
                        self.check_saved(checkpoint)
                    self._publish(self._staging, final)
            finally:
                self._staging = None
        self.accelerator.wait_for_everyone()

    def _name_best(self, staging: Path, final: Path) -> None:
        """Of the checkpoints in the final folder the one with the best scores, in the staged state too."""
        best = f"checkpoint-{self.state.best_global_step}"
        if (staging / best).is_dir() or (final / best).is_dir():
            self.state.best_model_checkpoint = str(final / best)
        if self.args.should_save:
            self.state.save_to_json(str(staging / f"checkpoint-{self.state.global_step}" / "trainer_state.json"))

    def _load_best_model(self) -> None:
        """As a checkpoint from which a run resumes."""
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(cast(str, self.state.best_model_checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Keep the dtypes of the weights: PEFT loads float32, and TRL trains QLoRA in bfloat16."""
        model_here = cast(nn.Module, self.model)
        dtypes = {name: parameter.dtype for name, parameter in model_here.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, parameter in model_here.named_parameters():
            if parameter.dtype != dtypes[name]:
                parameter.data = parameter.data.to(dtypes[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The next step has the learning rate of this run's schedule: the saved one is of the end that it had then."""
        super()._load_optimizer_and_scheduler(checkpoint)
        schedule: Any = self.lr_scheduler
        if checkpoint is not None and isinstance(schedule, LambdaLR):
            state = schedule.state_dict()
            schedule.last_epoch -= 1
            schedule.step()  # sets the rate, and counts a step
            schedule.load_state_dict(state | {"_last_lr": schedule.get_last_lr()})

    def _publish(self, staging: Path, final: Path) -> None:
        """Rename a finished checkpoint, and remove the oldest of this run above ``save_total_limit``; never the best.

        Only folders that this trainer names and fills count: a copy that the user made, and a link to elsewhere, stay.
        """
        for checkpoint in staging.glob("checkpoint-*"):
            target = final / checkpoint.name
            if target.is_symlink():
                target.unlink()  # what it leads to stays
            shutil.rmtree(target, ignore_errors=True)
            follow_umask(checkpoint)
            checkpoint.rename(target)
        own = {int(path.name.partition("-")[2]): path for path in final.glob("checkpoint-*") if _is_own(path)}
        surplus = len(own) - (self.args.save_total_limit or len(own))
        oldest_first = sorted(own, key=lambda step: (own[step].stat().st_mtime, step))
        unneeded = [step for step in oldest_first[:-1] if step != self.state.best_global_step]
        for step in unneeded[: max(0, surplus)]:
            shutil.rmtree(own[step], ignore_errors=True)


def _is_own(path: Path) -> bool:
    is_named = re.fullmatch(r"checkpoint-\d+", path.name) is not None
    return is_named and not path.is_symlink() and (path / "trainer_state.json").is_file()


class OwnSteps(TrainerCallback):
    """A resumed run logs and saves at the steps of its own flags; the trainer takes those of the checkpoint."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)


class _Logged(TypedDict, total=False):
    """The part of a logged step that is read."""

    loss: float
    step: int


class _State(TypedDict):
    """The state that the trainer resumes from."""

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
    record: RunRecord

    def scores_before(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The scores before training that the earlier run measured, if they are of the same rows as this run's."""
        if any(self.record["config"].get(flag) != config.get(flag) for flag in _SCORED_FLAGS):
            return None
        return self.record["results"]["before"]

    def check_steps(self, trainer: Trainer) -> None:
        """Check that the run has not gone beyond its new end, and say where a new end changes the learning rates.

        Args:
            trainer: not yet training.

        Raises:
            InputError: if it has.
        """
        state = read_json(self.checkpoint / "trainer_state.json", "", _State)
        done, before = state["global_step"], state["max_steps"]
        args = trainer.args
        *_, steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
        if steps < done:
            flag = "--max-steps" if args.max_steps > 0 else "--num-train-epochs"
            raise InputError(
                f"{self.checkpoint} has gone {done} steps, and the run would end after {steps}. Raise {flag}, or "
                "resume from an earlier checkpoint."
            )
        is_even = args.lr_scheduler_type in _ENDLESS_SCHEDULES and not 0 < args.warmup_steps < 1
        if steps != before and not is_even and PartialState().is_main_process:
            say(
                f"The run ends after {steps} steps instead of {before}: from here on the learning rate is that of the "
                f"schedule {SchedulerType(args.lr_scheduler_type).value} over {steps} steps."
            )

    def check_same_inputs(self, fingerprints: Mapping[str, str]) -> None:
        """Check what a run reads against what the interrupted one read.

        Args:
            fingerprints: by name, of any of :data:`_INPUTS`.

        Raises:
            InputError: naming the first that has changed.
        """
        for name in _INPUTS.keys() & fingerprints.keys():
            if self.record.get("fingerprints", {}).get(name) != fingerprints[name]:
                raise InputError(f"{_INPUTS[name]} have changed since {self.checkpoint} was saved. Start again.")


def find(flag: str | None, folder: Path, config: Mapping[str, Any]) -> Resumed | None:
    """The checkpoint that ``--resume-from-checkpoint`` means, checked against the run it belongs to.

    Args:
        flag: the flag's value: a folder, :data:`~monolora.recipes.training.arguments.LATEST`, or None for a fresh run.
        folder: the run's output folder.
        config: this run's resolved flags.

    Raises:
        InputError: if there is no such checkpoint, it is incomplete, or it is of a run with other settings (naming
            the flags).
    """
    if flag is None:
        return None
    path = get_last_checkpoint(str(folder)) if flag == LATEST and folder.is_dir() else flag
    if path is None or not Path(path).is_dir():
        raise InputError(
            f"There is no checkpoint to resume from in {folder if flag == LATEST else flag}. Leave "
            "--resume-from-checkpoint out to start again."
        )
    checkpoint = Path(path)
    if not (checkpoint / "trainer_state.json").exists() and (newest := get_last_checkpoint(path)):
        raise InputError(f"--resume-from-checkpoint {path} is a run. Give one of its checkpoints, such as {newest}.")
    _check_complete(checkpoint)
    before = run_record.read(checkpoint.parent)
    if before is None:
        raise InputError(
            f"{checkpoint.parent} has no {run_record.FILE}: it is unknown how {path} was made. Start again."
        )
    # Flags that an earlier version did not have stood at their defaults.
    earlier = {name: value for name, value in _defaults().items() if name in config} | before["config"]
    free = _FREE_FLAGS | (_LAYOUT if _can_divide(config) and _step_rows(config) == _step_rows(earlier) else frozenset())
    changed = sorted(
        key for key in config.keys() & earlier.keys() - free if _located(config[key]) != _located(earlier[key])
    )
    if changed:
        listed = ", ".join(f"{spelled(key)} {earlier[key]} → {config[key]}" for key in changed)
        raise InputError(f"{path} is of a run with other settings: {listed}. Give the same, or start again.")
    if any(config[key] != earlier[key] for key in _LAYOUT) and PartialState().is_main_process:
        say("The rows of a step are divided in another way than before: the run is the same up to rounding.")
    return Resumed(checkpoint, before)


def _step_rows(config: Mapping[str, Any]) -> int:
    """Rows of an optimizer step, of all processes."""
    return math.prod(config[flag] for flag in _LAYOUT)


def _can_divide(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint and the order of the rows allow another division of a step.

    DeepSpeed's checkpoints are of one number of processes.
    """
    is_deepspeed = str(config["sharding"]).startswith("zero")
    return not is_deepspeed and config["train_sampling_strategy"] != "batch_rebalance"


def _located(value: Any) -> Any:
    """A flag's value with the files and folders in it by their whole paths, in whichever way they were given."""
    if isinstance(value, list):
        return list(map(_located, value))
    if isinstance(value, dict):
        return {key: _located(item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    if _exists(value):
        return str(Path(value).resolve())
    for between in (" + ", ":"):  # of data sets, and behind the file of a keeper
        first, found, rest = value.partition(between)
        if found:
            return f"{_located(first)}{found}{_located(rest)}"
    return value


def _exists(path: str) -> bool:
    try:
        return path != "" and Path(path).exists()
    except OSError:  # too long for a path
        return False


def _defaults() -> dict[str, Any]:
    """Defaults of our own flags; those of TRL and transformers may depend on others."""
    return {
        flag.name: flag.default
        for cls in (RunArguments, AdapterArguments, SparsityArguments, LoraArguments)
        for flag in fields(cls)
        if flag.name in vars(cls).get("__annotations__", {})
    }


def _check_complete(checkpoint: Path) -> None:
    """Check that the files are there that the trainer needs; it ignores missing optimizer states silently."""
    fix = "Resume from an earlier checkpoint, or start again."
    try:
        state = read_json(checkpoint / "trainer_state.json", fix, _State)
        TrainerState(**state)
    except (InputError, TypeError) as error:
        reason = in_one_line(error).removesuffix(fix)
        raise InputError(
            f"{checkpoint} is no checkpoint: trainer_state.json is missing or damaged ({reason.rstrip('. ')}). {fix}"
        ) from error
    check_weights_file(str(checkpoint))
    for what, patterns in _HOLDS.items():
        if not any(any(checkpoint.glob(pattern)) for pattern in patterns):
            raise InputError(f"{checkpoint} has no {what}. {fix}")
    for file in checkpoint.glob("*.pt*"):
        if file.is_file() and not zipfile.is_zipfile(file):
            raise InputError(f"{file} is damaged. {fix}")
