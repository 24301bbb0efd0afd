"""Checks for flags that contradict each other, have no effect here, or have invalid values."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from trl import ModelConfig, ScriptArguments, SFTConfig

from monolora.activations import DEFAULT, Activation, activation_named
from monolora.cli.flags import spelled
from monolora.data.mixture_config import Component
from monolora.errors import InputError, unknown
from monolora.keep import KEEPERS, parse_keepers
from monolora.recipes.training.sparse_units import check_units

if TYPE_CHECKING:
    from monolora.recipes.training.arguments import Arguments


ADAPTERS = ("monolora", "lora", "none")

# TRL's flags that have no effect in this recipe, and the alternatives.
NOT_HERE = {
    "use_peft": "--adapter says what is trained",
    "lora_task_type": "the recipe trains causal language models",
    "dataset_streaming": "the examples are shuffled and counted first; use --max-train-samples for a part of them",
    "ignore_bias_buffers": "it is for models that this recipe does not train",
    "dataset_text_field": "the data set's format decides; see --dataset",
    "dataset_kwargs": "the recipe prepares the data set itself",
    "model_init_kwargs": "use --dtype, --attn-implementation, --model-revision or --trust-remote-code",
    **dict.fromkeys(
        (
            "do_eval", "prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object",
            "eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval",
            "eval_packing", "do_predict", "label_names",
        ),
        "held-out rows are scored as the recipe does it; see --eval-strategy and --validation-samples",
    ),
    "greater_is_better": "each metric says itself which values are better",
    "use_liger_kernel": "TRL has its own fused loss instead",
    "liger_kernel_config": "TRL has its own fused loss instead",
    "assistant_only_loss": "only answers are trained on; --train-on says which, and --conversations how",
    "do_train": "the recipe always trains; --preview stops before",
    "length_column_name": "lengths are those of the tokenized examples",
    "remove_unused_columns": "the trainer is given the tokenized examples alone",
    "restore_callback_states_from_checkpoint": "the recipe restores the state that there is",
    **dict.fromkeys(
        ("hub_strategy", "hub_always_push"), "--push-to-hub uploads once, when all is measured; checkpoints stay here"
    ),
    "hub_revision": "--push-to-hub uploads to the main branch",
    "parallelism_config": "accelerate's own file sets it: accelerate launch --config_file FILE",
    "local_rank": "the launcher sets it",
}  # fmt: skip
# TRL's flags that work here as documented. A flag in neither list is of a later TRL, and is refused: its effect here
# is unknown.
WORKS = frozenset(
    {
        # ScriptArguments
        "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split",
        # ModelConfig
        "model_name_or_path", "model_revision", "dtype", "attn_implementation", "lora_r", "lora_alpha", "lora_dropout",
        "lora_target_modules", "lora_target_parameters", "lora_modules_to_save", "use_rslora", "use_dora",
        "load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage",
        # TrainingArguments: optimization
        "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type",
        "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2",
        "adam_epsilon", "optim_target_modules", "gradient_accumulation_steps", "average_tokens_across_devices",
        "max_grad_norm", "label_smoothing_factor", "neftune_noise_alpha", "router_aux_loss_coef", "loss_type",
        "seed", "data_seed", "full_determinism", "train_sampling_strategy", "auto_find_batch_size",
        # … numbers, memory and devices
        "bf16", "fp16", "tf32", "gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_compile",
        "torch_compile_backend", "torch_compile_mode", "use_cache", "torch_empty_cache_steps", "use_cpu",
        "activation_offloading", "skip_memory_metrics", "debug", "accelerator_config", "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp",
        "fsdp_config", "deepspeed",
        # … data
        "dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
        "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order", "dataset_num_proc",
        "chat_template_path", "eos_token", "pad_token", "max_length", "truncation_mode", "shuffle_dataset", "packing",
        "packing_strategy", "padding_free", "pad_to_multiple_of", "completion_only_loss", "trust_remote_code",
        "per_device_eval_batch_size",
        # … scores while training
        "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "load_best_model_at_end", "metric_for_best_model",
        # … logging, saving, the hub
        "output_dir", "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node",
        "logging_nan_inf_filter", "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm",
        "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
        "save_only_model", "save_strategy", "save_steps", "save_on_each_node", "save_total_limit",
        "enable_jit_checkpoint", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "ignore_data_skip",
        "resume_from_checkpoint",
        # DPOConfig and KTOConfig
        "beta", "loss_weights", "label_smoothing", "ld_alpha", "f_divergence_type", "f_alpha_divergence_coef",
        "use_weighting", "discopop_tau", "desirable_weight", "undesirable_weight", "disable_dropout",
        "precompute_ref_log_probs", "precompute_ref_batch_size", "sync_ref_model", "ref_model_mixup_alpha",
        "ref_model_sync_steps",
    }
)  # fmt: skip
_HERE = "Did you mean {}?"
_NO_STREAM = "Streams are not read: the examples are shuffled and counted first. Use --max-train-samples for a part."
# Flags of older versions and of other programs.
RENAMED = {
    **dict.fromkeys(
        ("max_seq_length", "max_seq_len", "model_max_length", "cutoff_len", "sequence_len"),
        _HERE.format("--max-length"),
    ),
    **dict.fromkeys(("evaluation_strategy", "do_evaluate"), _HERE.format("--eval-strategy")),
    "early_stopping": _HERE.format("--early-stopping-patience"),
    "group_by_length": "Did you mean --train-sampling-strategy group_by_length?",
    **dict.fromkeys(("tokenizer", "tokenizer_name", "tokenizer_name_or_path"), "The tokenizer is that of --model."),
    **dict.fromkeys(("model_name", "base_model"), _HERE.format("--model")),
    **dict.fromkeys(("torch_dtype", "precision"), _HERE.format("--dtype")),
    **dict.fromkeys(("lr", "lr_rate"), _HERE.format("--learning-rate")),
    **dict.fromkeys(("epochs", "num_epochs"), _HERE.format("--num-train-epochs")),
    **dict.fromkeys(
        ("batch_size", "train_batch_size", "micro_batch_size", "per_gpu_train_batch_size"),
        _HERE.format("--per-device-train-batch-size"),
    ),
    **dict.fromkeys(("eval_batch_size", "per_gpu_eval_batch_size"), _HERE.format("--per-device-eval-batch-size")),
    **dict.fromkeys(("lora_rank", "rank", "r"), _HERE.format("--lora-r")),
    **dict.fromkeys(("target_modules", "lora_target", "lora_targets"), _HERE.format("--lora-target-modules")),
    "modules_to_save": _HERE.format("--lora-modules-to-save"),
    "warmup_ratio": "Did you mean --warmup-steps? Below 1 it is a share of all steps.",
    "no_cuda": _HERE.format("--use-cpu"),
    "overwrite_output_dir": _HERE.format("--overwrite"),
    "logging_dir": "Logs go to --output-dir.",
    "dataset_batch_size": "Examples are tokenized as a whole.",
    "streaming": _NO_STREAM,
    "test_split_size": "A tenth of a data set's rows is held out, or its split test.",
    "num_proc": _HERE.format("--dataset-num-proc"),
    "use_4bit": _HERE.format("--load-in-4bit"),
    "quantization": "Give --load-in-4bit or --load-in-8bit.",
    "push_to_hub_model_id": _HERE.format("--hub-model-id"),
    "push_to_hub_token": "Set HF_TOKEN in the environment.",
}
_AT_LEAST_ONE = (
    "max_train_samples", "max_eval_samples", "validation_samples", "eval_max_new_tokens", "max_length", "lora_r",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "keep_samples",
    "keep_answer_tokens", "keep_first_tokens", "keep_tokens", "precompute_ref_batch_size", "ref_model_sync_steps",
    "early_stopping_patience", "revive_after",
)  # fmt: skip
_WEIGHTS = ("sparsity_weight", "usage_weight")
_AT_LEAST_ZERO = (
    "weight_decay", "max_grad_norm", "desirable_weight", "undesirable_weight", "early_stopping_threshold", "eval_delay",
)  # fmt: skip
_ABOVE_ZERO = ("learning_rate", "num_train_epochs", "lora_alpha", "logging_steps", "save_steps", "eval_steps")
_OF_4BIT = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")
_OF_WORKERS = (
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
)  # fmt: skip
_OF_SCORES = (
    "eval_task", "eval_steps", "eval_delay", "eval_on_start", "load_best_model_at_end", "metric_for_best_model",
    "early_stopping_patience",
)  # fmt: skip
_MAPPINGS = ("gradient_checkpointing_kwargs", "lr_scheduler_kwargs", "rank_pattern", "alpha_pattern")
_SHAPING = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "init_lora_weights", "trainable_token_indices")
_ADVICE = {"lora_r": "; a common choice is 8", "lora_alpha": "; a common choice is 16"}


def check_conflicts(flags: argparse.Namespace, typed: set[str], named: set[str], training: type) -> None:
    """Check flags against each other.

    Args:
        flags: all flags, parsed.
        typed: names of those on the command line itself. A YAML file may hold an adapter's flags for runs without one.
        named: names of those on the command line or in the file.
        training: the dataclass of the trainer's flags.

    Raises:
        InputError: naming the flags and the fix.
    """
    if flags.adapter not in ADAPTERS:
        raise unknown("--adapter", flags.adapter, ADAPTERS)
    for name in sorted(named & NOT_HERE.keys()):
        raise InputError(f"{spelled(name)} has no effect here: {NOT_HERE[name]}. Leave it out.")
    for name in sorted(named & unclassified(training)):
        raise InputError(f"{spelled(name)} is newer than this recipe: its effect here is unknown.")
    _check_needs(flags, named)
    for ours, theirs in (("model", "model_name_or_path"), ("dataset", "dataset_name")):
        if {ours, theirs} <= named:
            raise InputError(f"{spelled(ours)} and {spelled(theirs)} mean the same. Keep {spelled(ours)}.")
    if flags.adapter_from is not None and flags.adapter == "none":
        raise InputError(
            "--adapter-from is for adapters. To train all weights further, give the folder of the model with --model."
        )
    _check_adapter_flags(flags, typed, named)
    _check_keep(flags, named)
    if flags.overwrite and flags.resume_from_checkpoint is not None:
        raise InputError("--overwrite starts a run anew and --resume-from-checkpoint continues one. Keep one of them.")
    if flags.activation_offloading and not torch.accelerator.is_available():
        raise InputError("--activation-offloading moves memory off a GPU, and there is none here. Leave it out.")


def check_mixture(mixture: Sequence[Component], named: set[str]) -> None:
    """Check that no flag of a single data set is given beside a mixture.

    Raises:
        InputError: naming the flag and the fix.
    """
    if not mixture:
        return
    if "dataset_name" in named:
        raise InputError("--dataset-name is of a single data set. Give each data set of a mixture as --dataset.")
    for name, theirs in (("dataset_config", "name"), ("dataset_train_split", "split"), ("drop_columns", "columns")):
        if name in named:
            raise InputError(
                f"{spelled(name)} is of a single data set. In a mixture each may have its own, as {theirs} in the list "
                "datasets of a YAML file (--config)."
            )
    if "dataset_test_split" in named:
        raise InputError("--dataset-test-split is of a single data set. Leave it out; in a mixture it is test.")


def check_sft(flags: argparse.Namespace, named: set[str]) -> None:
    """Check flags of supervised finetuning against each other.

    Raises:
        InputError: naming the flags and the fix.
    """
    if "packing_strategy" in named and not flags.packing:
        raise _without("packing_strategy", "--packing")
    if flags.truncation_mode == "keep_end":
        raise InputError("--truncation-mode keep_end would cut off where prompts begin. Leave it out.")
    if flags.packing and flags.packing_strategy == "bfd_split":
        raise InputError("--packing-strategy bfd_split would cut answers off from their prompts. Use bfd or wrapped.")
    if flags.packing and flags.packing_strategy == "wrapped" and flags.shuffle_dataset:
        raise InputError("--shuffle-dataset would mix up the pieces of wrapped examples. Leave it out.")
    if flags.completion_only_loss is False:
        raise InputError("--completion-only-loss false would train on prompts; this recipe trains on answers only.")
    check_units(flags, _activation(flags.activation) if flags.adapter == "monolora" else None)


def unclassified(training: type = SFTConfig) -> set[str]:
    """Flags of the installed TRL that are neither known to work here nor known to have no effect."""
    all_flags = {flag.name for kind in (ScriptArguments, ModelConfig, training) for flag in fields(kind)}
    return all_flags - WORKS - NOT_HERE.keys()


def _check_needs(flags: argparse.Namespace, named: set[str]) -> None:
    """Flags that have no effect without another one."""
    scored = flags.eval_strategy != "no"
    for names, needed, is_given in (
        (_OF_4BIT, "--load-in-4bit", flags.load_in_4bit),
        (_OF_WORKERS, "--dataloader-num-workers", flags.dataloader_num_workers),
        (("hub_model_id", "hub_private_repo"), "--push-to-hub", flags.push_to_hub),
        (_OF_SCORES, "--eval-strategy", scored),
        (("early_stopping_threshold",), "--early-stopping-patience", flags.early_stopping_patience),
        (("eval_steps",), "--eval-strategy steps", flags.eval_strategy == "steps"),
    ):
        for name in names:
            if name in named and getattr(flags, name) and not is_given:
                raise _without(name, needed)
    for name, value in (("save_strategy", "best"), ("lr_scheduler_type", "reduce_lr_on_plateau")):
        if getattr(flags, name) == value and not scored:
            raise InputError(f"{spelled(name)} {value} needs scores while training. Give --eval-strategy steps too.")
    if scored and not flags.validation_samples:
        raise InputError("--eval-strategy needs held-out rows. Give their number with --validation-samples.")
    if flags.eval_steps == 0:  # transformers would take --logging-steps
        raise InputError("--eval-steps must be a number above 0, got 0.")
    if flags.load_best_model_at_end and flags.save_strategy != "best":
        _check_scored_checkpoints(flags)


def _check_scored_checkpoints(flags: argparse.Namespace) -> None:
    """Raises: InputError, where a checkpoint would have no scores."""
    if flags.save_strategy != flags.eval_strategy:
        raise InputError(
            f"--load-best-model-at-end needs scores of every checkpoint, and --eval-strategy is {flags.eval_strategy}, "
            f"--save-strategy {flags.save_strategy}. Give both the same, or --save-strategy best."
        )
    times = flags.save_steps / (flags.eval_steps or flags.save_steps or 1)
    if flags.save_strategy == "steps" and not math.isclose(times, round(times)):
        raise InputError(
            f"--load-best-model-at-end needs scores of every checkpoint, and --save-steps {flags.save_steps:g} is no "
            f"multiple of --eval-steps {flags.eval_steps:g}. Make it one, or give --save-strategy best."
        )


def _without(name: str, needed: str) -> InputError:
    return InputError(f"{spelled(name)} has no effect without {needed}. Give that too, or leave it out.")


def _check_adapter_flags(flags: argparse.Namespace, typed: set[str], named: set[str]) -> None:
    if flags.adapter != "monolora" and "activation" in named:
        raise InputError(f"--activation is MonoLoRA's; --adapter {flags.adapter} has none. Leave it out.")
    if flags.adapter == "none":
        shaping = sorted(name for name in typed if name.startswith("lora_") or name in _SHAPING)
        if shaping:
            raise InputError(f"{spelled(shaping[0])} shapes an adapter, and --adapter none has none. Leave it out.")
        if flags.load_in_4bit or flags.load_in_8bit:
            raise InputError("Quantized weights cannot be trained. Leave --load-in-4bit and --load-in-8bit out.")
    if flags.adapter == "monolora" and flags.use_dora:
        raise InputError("MonoLoRA does not support --use-dora: with an activation there is no matrix to renormalise.")


def _activation(name: str) -> Activation:
    try:
        return activation_named(name)
    except ValueError as error:
        raise InputError(str(error)) from error


def _check_keep(flags: argparse.Namespace, named: set[str]) -> None:
    keepers = {keeper.name: keeper for keeper in parse_keepers(flags.keep or ())}
    for name in ("keep_prompts", "keep_samples", "keep_tokens"):
        if name in named and not keepers:
            raise _without(name, "--keep")
    reads_all = any(type(keeper) not in KEEPERS.values() for keeper in keepers.values())  # one from outside may
    if "keep_tokens" in named and "silence" not in keepers and not reads_all:
        raise _without("keep_tokens", "--keep silence")
    if "keep_first_tokens" in named and "kl" not in keepers and not reads_all:
        raise _without("keep_first_tokens", "--keep kl")
    if "keep_answer_tokens" in named and not keepers and not flags.keep_report:
        raise _without("keep_answer_tokens", "--keep or --keep-report")
    for keeper in keepers.values():
        if keeper.needs_adapter and flags.adapter == "none":
            raise InputError(
                f"--keep {keeper.name} works on an adapter's units, and --adapter none has none. Use replay or kl."
            )
    if keepers and flags.adapter_from is not None and flags.lora_bias != "none":
        raise InputError(
            f"--keep compares with the base, and --adapter-from {flags.adapter_from} has trained its biases, which "
            "stay when the adapter is switched off. Leave one of the two out."
        )
    if "silence" in keepers:
        _check_silence(flags)


def _check_silence(flags: argparse.Namespace) -> None:
    """Raises: InputError, for what changes the base where all units are silent, and for units that never are."""
    if flags.adapter == "monolora" and not _activation(flags.activation).zero_at_zero:
        raise InputError(
            f"--keep silence: {flags.activation} is never zero, so no unit is ever silent. Use --activation {DEFAULT}."
        )
    elsewhere = {
        "lora_modules_to_save": flags.lora_modules_to_save,
        "trainable_token_indices": flags.trainable_token_indices,
        "lora_bias": flags.lora_bias != "none",
        "use_dora": flags.use_dora,
        "lora_target_parameters": flags.lora_target_parameters,
    }
    for name, value in elsewhere.items():
        if value:
            raise InputError(
                f"{spelled(name)} trains weights that act on every token, which silent units cannot undo. Leave it "
                "out, or use --keep kl."
            )
    if flags.init_lora_weights not in ("true", "gaussian") and flags.adapter_from is None:
        raise InputError(
            f"--keep silence makes the first A itself and starts from B = 0, and --init-lora-weights "
            f"{flags.init_lora_weights} asks for others. Leave it out."
        )


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
        ("at least 0 and finite", _WEIGHTS, lambda value: 0 <= value < math.inf),
        ("a number above 0", _ABOVE_ZERO, lambda value: 0 < value < math.inf),
    )
    for need, names, holds in rules:
        for name in names:
            value = values.get(name)  # a program may lack it
            if value is not None and not holds(value) and not _unused(name, arguments):
                raise InputError(f"{spelled(name)} must be {need}, got {value}{_ADVICE.get(name, '')}.")
    if training.max_steps < 1 and training.max_steps != -1:
        raise InputError(f"--max-steps must be at least 1, got {training.max_steps}; -1 is --num-train-epochs.")
    for name in _MAPPINGS:
        if values[name] is not None and not isinstance(values[name], dict):
            raise InputError(f"{spelled(name)} must be a mapping in JSON, got {values[name]!r}.")
    for name in ("rank_pattern", "alpha_pattern"):
        for key, value in (values[name] or {}).items():
            kinds = (int,) if name == "rank_pattern" else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
                need = "a whole number from 1 on" if name == "rank_pattern" else "a number above 0"
                raise InputError(f"{spelled(name)}: {key} must be {need}, got {value!r}.")
    if training.gradient_checkpointing_kwargs and not training.gradient_checkpointing:
        raise InputError("--gradient-checkpointing-kwargs has no effect without --gradient-checkpointing. Give both.")
    if not 0 <= model.lora_dropout < 1:
        raise InputError(f"--lora-dropout must be at least 0 and below 1, got {model.lora_dropout}.")
    for name in ("seed", "data_seed"):
        if values[name] is not None and not 0 <= values[name] < 2**32:
            raise InputError(f"{spelled(name)} must be between 0 and 2**32 - 1, got {values[name]}.")


def _unused(name: str, arguments: Arguments) -> bool:
    training = arguments.training
    return (
        (name == "num_train_epochs" and training.max_steps > 0)
        or (name == "save_steps" and training.save_strategy != "steps")
        or (name == "logging_steps" and training.logging_strategy != "steps")
        or (name.startswith("lora_") and arguments.adapter.adapter == "none")
    )
