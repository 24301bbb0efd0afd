"""Registration of the method MONOLORA with PEFT, and checks of MonoLoRA files in PEFT's loaders.

PEFT has no public registration for a new *type*: ``PeftType`` is a plain enum (:mod:`monolora.peft_type`) and some
tables are keyed by it.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from typing import Any

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import CONFIG_NAME, hotswap, register_peft_method
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from monolora.checkpoint import check_no_lora_tensors, check_saved_beside, check_weights_file, to_memory_name
from monolora.config import MonoLoraConfig
from monolora.hotswap import check_swap, settle_swap, swap_names
from monolora.layer import MonoLoraLayer
from monolora.model import MonoLoraModel
from monolora.model_files import adopt_generation_config
from monolora.peft_type import NAME
from monolora.targets import resolve_patterns


def is_registered() -> bool:
    """Whether this process's PEFT knows the method."""
    return NAME in PEFT_TYPE_TO_TUNER_MAPPING


def add_method() -> None:
    """Add the method to PEFT's tables."""
    register_peft_method(
        name=NAME.lower(), config_cls=MonoLoraConfig, model_cls=MonoLoraModel, prefix=MonoLoraModel.prefix
    )
    hotswap.CONFIG_KEYS_TO_CHECK[PeftType(NAME)] = [
        # alpha_pattern may differ: the scalings follow the swap
        *(key for key in hotswap.CONFIG_KEYS_TO_CHECK[PeftType.LORA] if key != "alpha_pattern"),
        "activation",
    ]


def is_monolora_folder(folder: str) -> bool:
    """Whether ``folder`` is a local adapter folder of this type."""
    path = os.path.join(folder, CONFIG_NAME)
    if not os.path.isfile(path):
        return False
    with open(path, encoding="utf-8") as file:
        return bool(json.load(file).get("peft_type") == NAME)


def load_peft_weights(original: Callable[..., Any], model_id: str, *args: Any, **kwargs: Any) -> Any:
    """Around the one function that reads weights for PEFT, pickles too: it is passed safetensors only."""
    folder = os.path.join(model_id, kwargs.get("subfolder") or "")
    if is_monolora_folder(folder):
        check_weights_file(folder)
    return original(model_id, *args, **kwargs)


def set_peft_model_state_dict(
    original: Callable[..., Any],
    model: Any,
    peft_model_state_dict: Any,
    adapter_name: str = "default",
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Around the function that fails with a bare KeyError where a file lacks tensors saved beside A and B."""
    if model.peft_config[adapter_name].peft_type == NAME:
        check_saved_beside(peft_model_state_dict, model, adapter_name)
    return original(model, peft_model_state_dict, adapter_name, *args, **kwargs)


def hotswap_adapter_from_state_dict(
    original: Callable[..., None],
    model: Any,
    state_dict: dict[str, Any],
    adapter_name: str,
    config: Any,
    *args: Any,
    **kwargs: Any,
) -> None:
    """Around hotswap, which bypasses the tuner's own hooks and fills missing tensors with zeros."""
    if config.peft_type != NAME:
        original(model, state_dict, adapter_name, config, *args, **kwargs)
        return
    check_no_lora_tensors(state_dict, adapter_name)
    if config.adapted_modules is not None:  # the config comes from a file
        config = copy.copy(config)
        resolve_patterns(config, swap_names(model), config.adapted_modules)
    state_dict = {to_memory_name(key, adapter_name): value for key, value in state_dict.items()}
    check_swap(model, state_dict, adapter_name, config)
    original(model, state_dict, adapter_name, config, *args, **kwargs)
    settle_swap(model, adapter_name, config)


def pad_lora_weights(original: Callable[..., bool], model: Any, *args: Any, **kwargs: Any) -> bool:
    """Around hotswap's padding for compilation, which knows A and B alone: the units that it adds get thresholds."""
    padded = original(model, *args, **kwargs)
    for layer in model.modules():
        if isinstance(layer, MonoLoraLayer):
            layer.pad_thresholds()
    return padded


def update_offload(
    original: Callable[..., Any], model: Any, offload_index: dict[str, Any], adapters_weights: dict[str, Any]
) -> Any:
    """Around ``PeftModel._update_offload``, which copies tensors for layers on disk: under the model's names."""
    return original(model, offload_index, {to_memory_name(key): value for key, value in adapters_weights.items()})


def from_pretrained(
    original: Callable[..., Any], cls: type[Any], pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
) -> Any:
    """Around ``AutoPeftModel….from_pretrained``, which loads the base.

    The base may be packaged, or in the mirror; and the adapter may be trained on other end tokens.
    """
    if cls._target_class is not None:
        cls = type(cls.__name__, (cls,), {"_target_class": _Local(cls._target_class)})
    model = original(cls, pretrained_model_name_or_path, *args, **kwargs)
    if model.peft_type == NAME:
        source = {key: kwargs[key] for key in ("subfolder", "revision", "token", "cache_dir") if kwargs.get(key)}
        path = cached_file(
            pretrained_model_name_or_path,
            GENERATION_CONFIG_NAME,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **source,
        )
        if path is not None:
            adopt_generation_config(model.get_base_model(), os.path.dirname(path))
    return model


class _Local:
    """A class of transformers for bases by name, for those too that only :mod:`monolora.hub` finds."""

    def __init__(self, target: type[Any]) -> None:
        self._target = target

    def from_pretrained(self, name: str, **kwargs: Any) -> Any:
        from monolora.hub import local_model  # with libraries that importing monolora does without

        model = self._target.from_pretrained(local_model(name) or name, **kwargs)
        model.name_or_path = name
        return model


WRAPPERS: dict[str, Callable[..., Any]] = {
    "peft.peft_model:load_peft_weights": load_peft_weights,
    "peft.utils.hotswap:load_peft_weights": load_peft_weights,
    "peft.peft_model:set_peft_model_state_dict": set_peft_model_state_dict,
    "peft.utils.hotswap:hotswap_adapter_from_state_dict": hotswap_adapter_from_state_dict,
    "peft.utils.hotswap:_pad_lora_weights": pad_lora_weights,
    "peft.peft_model:PeftModel._update_offload": update_offload,
    "peft.auto:_BaseAutoPeftModel.from_pretrained": from_pretrained,
}
