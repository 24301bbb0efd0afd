"""Flags that contradict each other, have no effect here, or have values that cannot be."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from monolora.errors import InputError, unknown

if TYPE_CHECKING:
    from monolora.recipes.arguments import Arguments

ADAPTERS = ("monolora", "lora", "none")

# TRL's flags that this recipe would not look at, and what to do instead.
NOT_HERE = {
    "use_peft": "--adapter says what is trained",
    "lora_task_type": "the recipe trains causal language models",
    "dataset_streaming": "the examples are shuffled and counted first; use --max-train-samples for a part of them",
    "ignore_bias_buffers": "it is for models that this recipe does not train",
    "dataset_text_field": "the data set's format decides; see --dataset",
    "dataset_kwargs": "the recipe prepares the data set itself",
    "model_init_kwargs": "use --dtype, --attn-implementation, --model-revision or --trust-remote-code",
    "eval_strategy": "held-out rows are scored before and after training; see --max-eval-samples",
    "do_eval": "held-out rows are scored before and after training; see --max-eval-samples",
    "eval_on_start": "held-out rows are scored before and after training; see --max-eval-samples",
    "use_liger_kernel": "TRL has its own fused loss instead",
    "load_best_model_at_end": "nothing is scored between checkpoints",
    "assistant_only_loss": "every assistant turn is an example of its own, and only its answer is trained on",
}
_AT_LEAST_ONE = (
    "max_train_samples", "max_eval_samples", "validation_samples", "eval_max_new_tokens", "max_length", "lora_r",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
)  # fmt: skip
_AT_LEAST_ZERO = ("weight_decay", "max_grad_norm")
_ABOVE_ZERO = ("learning_rate", "num_train_epochs", "lora_alpha", "logging_steps", "save_steps")
_MAPPINGS = ("gradient_checkpointing_kwargs", "lr_scheduler_kwargs", "rank_pattern", "alpha_pattern")
_SHAPING = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "init_lora_weights", "trainable_token_indices")
_MENDS = {"lora_r": "; a common choice is 8", "lora_alpha": "; a common choice is 16"}


def check_conflicts(flags: argparse.Namespace, typed: set[str], named: set[str]) -> None:
    """Check flags against each other.

    Args:
        flags: all flags, parsed.
        typed: names of those on the command line itself. A YAML file may hold an adapter's flags for runs without one.
        named: names of those on the command line or in the file.

    Raises:
        InputError: naming the flags and the mend.
    """
    if flags.adapter not in ADAPTERS:
        raise unknown("--adapter", flags.adapter, ADAPTERS)
    for name in sorted(named & NOT_HERE.keys()):
        raise InputError(f"{_flag(name)} has no effect here: {NOT_HERE[name]}. Leave it out.")
    for ours, theirs in (("model", "model_name_or_path"), ("dataset", "dataset_name")):
        if {ours, theirs} <= named:
            raise InputError(f"{_flag(ours)} and {_flag(theirs)} mean the same. Keep {_flag(ours)}.")
    _check_adapter_flags(flags, typed, named)
    if flags.overwrite and flags.resume_from_checkpoint is not None:
        raise InputError("--overwrite starts a run anew and --resume-from-checkpoint continues one. Keep one of them.")
    if flags.truncation_mode == "keep_end":
        raise InputError("--truncation-mode keep_end would cut off where prompts begin. Leave it out.")
    if flags.activation_offloading and not torch.accelerator.is_available():
        raise InputError("--activation-offloading moves memory off a GPU, and there is none here. Leave it out.")
    if flags.packing and flags.packing_strategy == "bfd_split":
        raise InputError("--packing-strategy bfd_split would cut answers off from their prompts. Use bfd or wrapped.")
    if flags.packing and flags.packing_strategy == "wrapped" and flags.shuffle_dataset:
        raise InputError("--shuffle-dataset would mix up the pieces of wrapped examples. Leave it out.")
    if flags.completion_only_loss is False:
        raise InputError("--completion-only-loss false would train on prompts; this recipe trains on answers only.")


def _check_adapter_flags(flags: argparse.Namespace, typed: set[str], named: set[str]) -> None:
    if flags.adapter != "monolora" and "activation" in named:
        raise InputError(f"--activation is MonoLoRA's; --adapter {flags.adapter} has none. Leave it out.")
    if flags.adapter == "none":
        shaping = sorted(name for name in typed if name.startswith("lora_") or name in _SHAPING)
        if shaping:
            raise InputError(f"{_flag(shaping[0])} shapes an adapter, and --adapter none has none. Leave it out.")
        if flags.load_in_4bit or flags.load_in_8bit:
            raise InputError("Quantized weights cannot be trained. Leave --load-in-4bit and --load-in-8bit out.")
    if flags.adapter == "monolora" and flags.use_dora:
        raise InputError("MonoLoRA does not support --use-dora: with an activation there is no matrix to renormalise.")


def check_values(arguments: Arguments) -> None:
    """Check numbers against their ranges.

    Raises:
        InputError: naming the flag and the range.
    """
    _, training, model, adapter = arguments
    values = vars(training) | vars(model) | vars(adapter)
    rules: tuple[tuple[str, tuple[str, ...], Callable[[float], bool]], ...] = (
        ("at least 1", _AT_LEAST_ONE, lambda value: value >= 1),
        ("at least 0", _AT_LEAST_ZERO, lambda value: value >= 0),
        ("a number above 0", _ABOVE_ZERO, lambda value: 0 < value < math.inf),
    )
    for need, names, holds in rules:
        for name in names:
            value = values[name]
            if value is not None and not holds(value) and not _unused(name, arguments):
                raise InputError(f"{_flag(name)} must be {need}, got {value}{_MENDS.get(name, '')}.")
    for name in _MAPPINGS:
        if values[name] is not None and not isinstance(values[name], dict):
            raise InputError(f"{_flag(name)} must be a mapping in JSON, got {values[name]!r}.")
    for name in ("rank_pattern", "alpha_pattern"):
        for key, value in (values[name] or {}).items():
            kinds = (int,) if name == "rank_pattern" else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
                need = "a whole number from 1 on" if name == "rank_pattern" else "a number above 0"
                raise InputError(f"{_flag(name)}: {key} must be {need}, got {value!r}.")
    if not 0 <= model.lora_dropout < 1:
        raise InputError(f"--lora-dropout must be at least 0 and below 1, got {model.lora_dropout}.")
    for name in ("seed", "data_seed"):
        if values[name] is not None and not 0 <= values[name] < 2**32:
            raise InputError(f"{_flag(name)} must be between 0 and 2**32 - 1, got {values[name]}.")


def _unused(name: str, arguments: Arguments) -> bool:
    training = arguments.training
    return (
        (name == "num_train_epochs" and training.max_steps > 0)
        or (name == "save_steps" and training.save_strategy != "steps")
        or (name == "logging_steps" and training.logging_strategy != "steps")
        or (name.startswith("lora_") and arguments.adapter.adapter == "none")
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
