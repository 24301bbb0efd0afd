"""What an adapter folder says of itself, and whether it can be served: read before vLLM reads it.

vLLM takes no notice of ``peft_type``, so a folder whose config and tensors disagree is found out here.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from pathlib import Path
from typing import Any

from safetensors import safe_open

from monolora.checkpoint import AdapterFileError, check_no_lora_tensors, check_weights_file, is_monolora_name
from monolora.config import MonoLoraConfig
from monolora.errors import in_one_line
from monolora.patterns import check_bounded
from monolora.peft_type import NAME
from monolora.serving.gate import ACTIVATION_BOUNDS
from monolora.serving.ranks import EXACT_MEND

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


def served_config(folder: str) -> MonoLoraConfig | None:
    """The config of a MonoLoRA adapter that can be served; None for any other adapter, and where there is none.

    Read once for each state of the folder's files.

    Raises:
        AdapterFileError: if config or weights are damaged, say different things about what they are, or ask for what
            is not served.
    """
    return _served_config(folder, files_state(folder))


def files_state(folder: str) -> tuple[tuple[int, int] | None, ...]:
    """A value that changes when one of the adapter's two files does."""
    states: list[tuple[int, int] | None] = []
    for name in (_CONFIG, _WEIGHTS):
        try:
            found = os.stat(os.path.join(folder, name))
            states.append((found.st_mtime_ns, found.st_size))
        except OSError:
            states.append(None)
    return tuple(states)


@functools.lru_cache(maxsize=1024)
def _served_config(folder: str, state: object) -> MonoLoraConfig | None:
    weights = Path(folder) / _WEIGHTS
    named = peft_type(folder)
    if named is None:
        return None  # vLLM says so
    if named != NAME:
        _check_no_monolora_tensors(weights, named)
        return None
    check_weights_file(folder)
    if not weights.is_file():
        raise AdapterFileError(f"{folder} holds no weights: {_WEIGHTS} is missing. Copy the whole folder.")
    try:
        check_no_lora_tensors(_tensor_names(weights))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys that a later PEFT has added
            parsed = MonoLoraConfig.from_pretrained(folder)
        check_bounded(parsed)
    except (ValueError, TypeError) as error:
        raise AdapterFileError(f"{folder} cannot be used: {in_one_line(error)}") from error
    _check_options(parsed, folder)
    return parsed


def peft_type(folder: str) -> str | None:
    """What the config in a folder calls its method; vLLM takes a config without a name for LoRA's. None without config.

    Raises:
        AdapterFileError: if the config is damaged.
    """
    config = Path(folder) / _CONFIG
    if not config.is_file():
        return None
    try:
        return str(json.loads(config.read_text()).get("peft_type", "LORA"))
    except (ValueError, AttributeError, OSError) as error:
        raise AdapterFileError(f"{config} is damaged: {in_one_line(error)} Copy it again.") from error


def _tensor_names(weights: Path) -> list[str]:
    with safe_open(weights, framework="pt") as file:
        return list(file.keys())


def _check_no_monolora_tensors(weights: Path, named: str) -> None:
    """vLLM's own loader, which knows the names by now, would drop the activation."""
    try:
        ours = sorted(filter(is_monolora_name, _tensor_names(weights)))
    except Exception:  # no such file, or a damaged one: vLLM's to say
        return
    if ours:
        raise AdapterFileError(
            f"Tensor {ours[0]!r} in {weights} belongs to a MonoLoRA adapter, but the config says {named}. Set "
            f"peft_type to {NAME} in {_CONFIG} (and activation, if it is not relu)."
        )


def _check_options(config: MonoLoraConfig, folder: str) -> None:
    """Refuse what vLLM's LoRA layers have no place for."""
    unserved: dict[str, Any] = {
        "modules_to_save": config.modules_to_save,
        "trainable_token_indices": config.trainable_token_indices,
        "lora_bias": config.lora_bias,
        "bias": config.bias if config.bias != "none" else None,
        "activation": config.activation if config.activation not in ACTIVATION_BOUNDS else None,
    }
    for name, value in unserved.items():
        if value:
            raise AdapterFileError(f"{folder} has {name}={value!r}, which is not served beside its base. {EXACT_MEND}")
