"""The flags that ``--help`` shows, in sections: our own, and TRL's that are used often."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from monolora.recipes.training.arguments import SFT, LoraArguments, Program, RunArguments, TrainingDefaults
from monolora.recipes.training.keeping import KeepArguments
from monolora.recipes.training.sparse_units import SparsityArguments

# TRL's and transformers' flags that are used often, beside those whose defaults are ours.
_USED_OFTEN = {
    "adapter": ("lora_target_modules", "lora_modules_to_save", "use_rslora", "load_in_4bit", "load_in_8bit"),
    "training": (
        "max_steps", "max_length", "gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "weight_decay",
        "optim", "bf16", "seed", "eval_strategy", "metric_for_best_model", "load_best_model_at_end",
        "resume_from_checkpoint", "save_total_limit", "report_to", "push_to_hub", "hub_model_id",
    ),
}  # fmt: skip


def own_flags(*classes: type[Any]) -> list[str]:
    """The fields that each of these dataclasses defines itself, by name."""
    known = {flag.name for cls in classes for flag in fields(cls) if flag.init}
    return [name for name in dict.fromkeys(name for cls in classes for name in cls.__annotations__) if name in known]


def training_defaults(program: Program) -> list[type[Any]]:
    """The classes of a program's training flags that have defaults of ours."""
    return [cls for cls in reversed(program.training.__mro__) if TrainingDefaults in cls.__mro__]


def sections(program: Program = SFT) -> dict[str, list[str]]:
    """The flags that ``--help`` shows, by their names with underscores, under titles."""
    often = {kind: [*(program.often if kind == "training" else ()), *names] for kind, names in _USED_OFTEN.items()}
    units = {"Units that are few and in use": own_flags(SparsityArguments)} if program is SFT else {}
    return {
        "What is trained, on what, and what is measured": own_flags(RunArguments, program.own),
        "What is kept of the base": own_flags(KeepArguments),
        **units,
        "The adapter": [*own_flags(LoraArguments), *often["adapter"]],
        "Training": [*own_flags(*training_defaults(program)), *often["training"]],
    }
