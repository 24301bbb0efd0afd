"""The flags of ``monolora dpo``: TRL's DPOConfig or KTOConfig with our defaults, and checks of them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import DPOConfig, KTOConfig

from monolora.cli.flags import spelled
from monolora.data.preference_tasks import BUILT_IN
from monolora.errors import InputError, unknown
from monolora.keep import parse_keepers
from monolora.recipes.training.arguments import Program, RunArguments, TrainingDefaults

# DPOConfig takes any word; DPOTrainer refuses a wrong one in its first step. A test compares these with TRL's help.
LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
# TRL's flags that have no effect in its preference trainers, or another than their names say.
NOT_FOR_PREFERENCES = {
    "label_smoothing_factor": "TRL's preference losses do not read it; --label-smoothing is theirs",
    "neftune_noise_alpha": "the noise would be in the reference's answers too",
    "padding_free": "TRL switched it off in this trainer",
    "pad_token": "TRL takes the tokenizer's own",
}
REPLAY = (
    "--keep replay adds rows with one answer, the base's, and a preference is learned from two answers or a label. Use "
    "--keep kl or silence."
)


@dataclass
class PreferenceArguments(RunArguments):
    """What is learned from which preferences, and what is measured."""

    method: str = field(
        default="dpo",
        metadata={
            "help": "dpo (TRL's DPOTrainer) learns from pairs; kto (its KTOTrainer) from single answers with a label, "
            "and takes pairs apart. The other method has other flags: monolora dpo --method kto --help.",
            "choices": ["dpo", "kto"],
        },
    )
    dataset: str = field(
        default="beavertails",
        metadata={
            "help": f"Preferences: {', '.join(BUILT_IN)}, a hub id, or a .jsonl, .json, .csv or .parquet file with "
            "prompt, chosen and rejected (or prompt, completion and label)."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Number of rows that are trained on. Default: 5000."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Number of held-out rows that are scored before and after. Default: 1000."}
    )
    validation_samples: int | None = field(
        default=None,
        metadata={
            "help": "Number of training rows, the last ones, that are held out for rewards and a loss at the end, by "
            "which runs can be selected. Default: none."
        },
    )


@dataclass
class PreferenceDefaults(TrainingDefaults):
    """Defaults that suit preferences. Mix it in before TRL's config."""

    learning_rates: ClassVar[dict[str, float]] = {"monolora": 1e-4, "lora": 1e-4, "none": 1e-6}

    learning_rate: float = field(
        default=1e-4, metadata={"help": "Learning rate. Default: 1e-4 for adapters, 1e-6 (TRL's) for full finetuning."}
    )
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Rows a step and device."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Answers at a time when scoring."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "Rows of one length come together, so less is padded; or random, sequential.",
            "choices": ["random", "sequential", "group_by_length"],
        },
    )
    eos_token: str | None = field(
        default=None, metadata={"help": "Token that ends an answer. Default: the tokenizer's."}
    )


@dataclass(repr=False)
class PairTraining(PreferenceDefaults, DPOConfig):
    """TRL's DPOConfig with our defaults."""


@dataclass(repr=False)
class JudgedTraining(PreferenceDefaults, KTOConfig):
    """TRL's KTOConfig with our defaults."""

    train_sampling_strategy: str = field(
        default="sequential",
        metadata={
            "help": "The order of the seed; KTO's loss needs it, --loss-type apo_zero_unpaired takes others too.",
            "choices": ["random", "sequential", "group_by_length"],
        },
    )


def check_preferences(flags: argparse.Namespace, named: set[str]) -> None:
    """Check the flags of both methods against each other.

    Raises:
        InputError: naming the flags and the fix.
    """
    for name in sorted(named & NOT_FOR_PREFERENCES.keys()):
        raise InputError(f"{spelled(name)} has no effect here: {NOT_FOR_PREFERENCES[name]}. Leave it out.")
    if flags.lora_dropout and "lora_dropout" in named and flags.disable_dropout:
        raise InputError(
            "--lora-dropout has no effect here: TRL switches dropout off for preferences. Add --disable-dropout false, "
            "or leave it out."
        )
    for names, needed, is_given in (
        (("precompute_ref_batch_size",), "--precompute-ref-log-probs", flags.precompute_ref_log_probs),
        (("ref_model_mixup_alpha", "ref_model_sync_steps"), "--sync-ref-model", flags.sync_ref_model),
    ):
        _check_needed(names, needed, is_given, named)
    if flags.lora_bias != "none" and flags.adapter != "none":
        raise InputError(
            f"--lora-bias {flags.lora_bias} trains biases that stay when the adapter is switched off, so the reference "
            "would not be the model that training starts from. Leave it out, or take another --adapter-from."
        )
    if flags.sync_ref_model and flags.adapter != "none":
        raise InputError(
            "--sync-ref-model moves a reference that is a model of its own, and an adapter's reference is its base. "
            "Leave it out, or use --adapter none."
        )
    if flags.sync_ref_model and flags.resume_from_checkpoint is not None:
        raise InputError("--sync-ref-model moves the reference, and no checkpoint holds it. Start again.")
    if any(keeper.name == "replay" for keeper in parse_keepers(flags.keep or ())):
        raise InputError(REPLAY)
    if not 0 < flags.beta < math.inf:
        raise InputError(f"--beta must be a number above 0, got {flags.beta}.")


def check_pairs(flags: argparse.Namespace, named: set[str]) -> None:
    """Check the flags of DPO against each other.

    Raises:
        InputError: naming the flags and the fix.
    """
    check_preferences(flags, named)
    losses = [flags.loss_type] if isinstance(flags.loss_type, str) else flags.loss_type
    for loss in losses:
        if loss not in LOSSES:
            raise unknown("--loss-type", loss, LOSSES)
    if flags.f_divergence_type not in DIVERGENCES:
        raise unknown("--f-divergence-type", flags.f_divergence_type, DIVERGENCES)
    if flags.truncation_mode == "keep_end":
        raise InputError("--truncation-mode keep_end would cut off where prompts begin. Leave it out.")
    is_alpha = flags.f_divergence_type == "alpha_divergence"
    _check_needed(("f_alpha_divergence_coef",), "--f-divergence-type alpha_divergence", is_alpha, named)
    _check_needed(("discopop_tau",), "--loss-type discopop", "discopop" in losses, named)
    smoothed = bool({"robust", "exo_pair", "aot", "aot_unpaired"} & set(losses))
    _check_needed(("label_smoothing",), "--loss-type robust, exo_pair, aot or aot_unpaired", smoothed, named)
    if not 0 <= flags.label_smoothing < 0.5:
        raise InputError(f"--label-smoothing must be at least 0 and below 0.5, got {flags.label_smoothing}.")
    if flags.ld_alpha is not None and not 0 <= flags.ld_alpha <= 1:
        raise InputError(f"--ld-alpha must be between 0 and 1, got {flags.ld_alpha}.")


def check_judged(flags: argparse.Namespace, named: set[str]) -> None:
    """Check the flags of KTO against each other.

    Raises:
        InputError: naming the flags and the fix.
    """
    check_preferences(flags, named)
    if flags.loss_type != "kto":
        return
    needs = "KTO estimates a KL from the answers of the other rows of a batch"
    if flags.train_sampling_strategy != "sequential":
        raise InputError(f"--train-sampling-strategy must be sequential: {needs}. Leave it out.")
    if flags.per_device_train_batch_size == 1:
        raise InputError(f"--per-device-train-batch-size must be at least 2: {needs}.")
    if flags.auto_find_batch_size:
        raise InputError(f"--auto-find-batch-size cannot be used: {needs}, so their number is fixed. Leave it out.")


def _check_needed(names: tuple[str, ...], needed: str, is_given: Any, named: set[str]) -> None:
    """Raises: InputError, for a flag that has no effect without another one."""
    for name in names:
        if name in named and not is_given:
            raise InputError(f"{spelled(name)} has no effect without {needed}. Give that too, or leave it out.")


_Check = Callable[[argparse.Namespace, set[str]], None]


def _program(name: str, training: type[Any], check: _Check, *often: str) -> Program:
    shared = ("beta", "loss_type", "precompute_ref_log_probs")
    return Program(name, training, PreferenceArguments, check, (*shared, *often))


DPO = _program("monolora dpo", PairTraining, check_pairs, "loss_weights", "label_smoothing")
KTO = _program("monolora dpo --method kto", JudgedTraining, check_judged, "desirable_weight", "undesirable_weight")
PROGRAMS = {"dpo": DPO, "kto": KTO}
