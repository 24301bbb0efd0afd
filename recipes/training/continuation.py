"""``--adapter-from``: an adapter that is trained further, and its settings as the flags that would make it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import LoraConfig

from monolora import run_record
from monolora.adapters import adapter_config
from monolora.checkpoint import same_model
from monolora.cli.flags import spelled
from monolora.config import MonoLoraConfig
from monolora.errors import InputError
from monolora.run_record import fingerprint_files

if TYPE_CHECKING:
    from monolora.recipes.training.arguments import Arguments

# Where an adapter begins at other weights than its base's, PEFT changes the base again when it loads it.
_CHANGING_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def starting_adapter(folder: str) -> LoraConfig:
    """The config of the adapter in a folder: a run, a checkpoint of one, or any LoRA or MonoLoRA adapter of PEFT's.

    Raises:
        InputError: if there is none that can be trained further.
    """
    path = Path(folder)
    if not (path / "adapter_config.json").is_file():
        if (path / "config.json").is_file():
            raise InputError(
                f"--adapter-from {folder} holds a whole model. Train it further with --model {folder} --adapter none."
            )
        steps = [int(name) for child in path.glob("checkpoint-*") if (name := child.name.partition("-")[2]).isdecimal()]
        if steps:
            last = path / f"checkpoint-{max(steps)}"
            raise InputError(
                f"--adapter-from {folder} holds no adapter yet, but checkpoints. Give one, such as {last}."
            )
    config = adapter_config(folder)
    if not isinstance(config, LoraConfig) or config.peft_type not in ("LORA", "MONOLORA"):
        method = str(config.peft_type).rpartition(".")[2]
        raise InputError(f"--adapter-from {folder} is of method {method}. Give a LoRA or MonoLoRA adapter.")
    if config.task_type not in (None, "CAUSAL_LM"):
        raise InputError(
            f"--adapter-from {folder} is made for {config.task_type}. Give one of a causal language model."
        )
    init = str(config.init_lora_weights).lower()
    if init.startswith(_CHANGING_BASE):
        raise InputError(
            f"--adapter-from {folder} was initialised by {init}, which changes the base's weights. Convert it to plain "
            "LoRA first: PEFT's save_pretrained does, with path_initial_model_for_weight_conversion."
        )
    return config


def settings_of(folder: str) -> dict[str, Any]:
    """The flags that would make the adapter again, by their names: base, kind, rank, targets and all that shapes it.

    Raises:
        InputError: if the folder holds no adapter that can be trained further.
    """
    config = starting_adapter(folder)
    is_monolora = isinstance(config, MonoLoraConfig)
    settings = {
        "adapter": "monolora" if is_monolora else "lora",
        "lora_r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "lora_target_modules": _listed(config.target_modules),
        "lora_target_parameters": _listed(config.target_parameters),
        "lora_modules_to_save": _listed(config.modules_to_save),
        "lora_exclude_modules": _listed(config.exclude_modules),
        "lora_bias": config.bias,
        "rank_pattern": config.rank_pattern or None,
        "alpha_pattern": config.alpha_pattern or None,
        "init_lora_weights": str(config.init_lora_weights).lower(),
        "trainable_token_indices": config.trainable_token_indices,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
    }
    if isinstance(config, MonoLoraConfig):
        settings["activation"] = config.activation
    if config.base_model_name_or_path:
        settings["model"] = config.base_model_name_or_path
    return settings


def _listed(names: str | Iterable[str] | None) -> str | list[str] | None:
    return names if names is None or isinstance(names, str) else sorted(names)


def check_settings(arguments: Arguments, settings: Mapping[str, Any], model_given: bool) -> None:
    """Check that no flag contradicts the adapter of ``--adapter-from``.

    Args:
        arguments: all flags.
        settings: the adapter's (:func:`settings_of`).
        model_given: whether there is a flag that names the base.

    Raises:
        InputError: naming the first flag that does.
    """
    folder = arguments.adapter.adapter_from
    if "model" not in settings and not model_given:
        raise InputError(f"{folder}/adapter_config.json names no base model. Give it with --model.")
    given = vars(arguments.model) | vars(arguments.adapter)
    for name, value in settings.items():
        alike = same_model(value, given[name]) if name == "model" else _comparable(value) == _comparable(given[name])
        if not alike:
            raise InputError(
                f"{spelled(name)} {given[name]} contradicts --adapter-from {folder}, which has {value}. Leave it out."
            )


def _comparable(value: Any) -> Any:
    """A flag's value, with names in one order, and nothing as None."""
    if isinstance(value, (str, list)):
        return sorted([value] if isinstance(value, str) else value) or None
    return value or None


def check_base(folder: str, model: str, fingerprint: str) -> None:
    """Check that the base has the weights that the adapter's run recorded, where there is a record.

    Args:
        folder: of the adapter.
        model: the base, as it was named.
        fingerprint: of its weights.

    Raises:
        InputError: if they are others.
    """
    run = run_record.of_adapter(folder)
    recorded = run.get("fingerprints", {}).get("model") if run else None
    if recorded not in (None, fingerprint):
        raise InputError(
            f"--adapter-from {folder} was trained on other weights than those of {model} (fingerprint {recorded}, here "
            f"{fingerprint}). Give its own base with --model."
        )


def fingerprint(folder: str) -> str:
    """Of the adapter's weights."""
    return fingerprint_files(folder, "adapter_model.safetensors")
