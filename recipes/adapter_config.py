"""The PEFT config that the flags ask for."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable

from peft import LoraConfig
from torch import nn

from monolora.config import MonoLoraConfig
from monolora.errors import InputError
from monolora.recipes.arguments import Arguments
from monolora.targets import near_misses


def peft_config(arguments: Arguments) -> LoraConfig | None:
    """The PEFT config of the run, or None for full finetuning.

    Raises:
        InputError: for values that PEFT or MonoLoRA refuse.
    """
    kind, model = arguments.adapter.adapter, arguments.model
    if kind == "none":
        return None
    config: Callable[..., LoraConfig] = (
        functools.partial(LoraConfig, use_dora=model.use_dora)
        if kind == "lora"
        else functools.partial(MonoLoraConfig, activation=arguments.adapter.activation)
    )
    try:
        return config(
            r=model.lora_r,
            lora_alpha=model.lora_alpha,
            lora_dropout=model.lora_dropout,
            target_modules=_as_names(model.lora_target_modules),
            target_parameters=model.lora_target_parameters,
            modules_to_save=model.lora_modules_to_save,
            use_rslora=model.use_rslora,
            task_type="CAUSAL_LM",
        )
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error


def _as_names(targets: str | list[str] | None) -> str | list[str] | None:
    """A list, where TRL has made a single name a string, which PEFT would read as a pattern for whole names."""
    if isinstance(targets, str) and targets != "all-linear" and re.fullmatch(r"[\w.]+", targets):
        return [targets]
    return targets


def check_targets(model: nn.Module, targets: str | Iterable[str] | None) -> None:
    """Check that every name or pattern of ``--lora-target-modules`` matches a module; PEFT is content with one.

    Raises:
        InputError: naming the first that matches none, and the nearest module names.
    """
    if targets is None or targets == "all-linear":
        return
    patterns = (
        {targets: targets} if isinstance(targets, str) else {name: rf"(.*\.)?{re.escape(name)}" for name in targets}
    )
    names = [name for name, _ in model.named_modules()]
    for target, pattern in sorted(patterns.items()):
        try:
            matched = any(re.fullmatch(pattern, name) for name in names)
        except re.error as error:
            raise InputError(f"--lora-target-modules {target} is no regular expression: {error}.") from error
        if not matched:
            raise InputError(f"--lora-target-modules {target} matches no module. {near_misses(model, target)}")
