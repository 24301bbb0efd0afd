"""Loading of MonoLoRA adapters and of exact checkpoints by transformers."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import inject_adapter_in_model, peft_model
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils import hotswap
from transformers.quantizers import auto
from transformers.utils import find_adapter_config_file
from transformers.utils.loading_report import LoadStateDictInfo

from monolora.checkpoint import MEMORY_PREFIX, AdapterFileError
from monolora.config import MonoLoraConfig
from monolora.errors import InputError
from monolora.integrations.peft import is_monolora_folder
from monolora.layer import MonoLoraLayer
from monolora.merge.quantizer import NEEDS_MONOLORA, MonoLoraHfQuantizer, MonoLoraQuantizationConfig
from monolora.merge.unload import BAKED
from monolora.peft_type import NAME

# Adapters.


def load_adapter(original: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``model.load_adapter``, which reads files itself: MonoLoRA adapters go through PEFT's functions.

    These raise an error for a bad file, where transformers only logs it or does not check (pickles, NaN, weights of the
    base model). They also hotswap, which transformers does for LoRA alone.
    """
    given = _signature(original).bind(model, *args, **kwargs).arguments
    source: Any = given.get("peft_model_id")
    config, tensors = given.get("peft_config"), given.get("adapter_state_dict")
    options = _hub_options(given)
    is_monolora = _is_monolora(source, options) if config is None else config.peft_type == NAME
    if not is_monolora or (source is None and tensors is None):
        return original(model, *args, **kwargs)
    name = given.get("adapter_name") or "default"
    is_known = model._hf_peft_config_loaded and name in model.peft_config
    hotswap_wanted = given.get("hotswap", "auto")
    if hotswap_wanted == "auto":
        hotswap_wanted = is_known and "_hotswap_enabled" in vars(model)
    if hotswap_wanted and not is_known:
        raise ValueError(f"There is no adapter named {name!r} to swap out. Load one first, without hotswap.")
    if is_known and not hotswap_wanted:
        raise ValueError(f"Adapter with name {name} already exists. Please use a different name.")
    config = MonoLoraConfig.from_pretrained(source, **options) if config is None else config
    tensors = peft_model.load_peft_weights(source, device="cpu", **options) if tensors is None else tensors
    tensors = {key.removeprefix("base_model.model."): value for key, value in tensors.items()}  # no PeftModel around it
    if hotswap_wanted:
        _swap_adapter(model, name, config, tensors)
    else:
        config.inference_mode = not given.get("is_trainable", False)
        _add_adapter(model, name, config, tensors)
    return LoadStateDictInfo(set(), set(), set(), [], {}, set())


_signature = functools.cache(inspect.signature)
_HUB_OPTIONS = ("subfolder", "revision", "cache_dir", "token", "force_download", "local_files_only")


def _hub_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``load_adapter`` that say where on the hub to look, as PEFT's functions take them."""
    load_config = given.get("load_config")
    options = dict(load_config.download_kwargs or {}) if load_config is not None else {}
    options |= given.get("kwargs") or {}
    options |= given.get("adapter_kwargs") or {}
    options |= {"local_files_only": True} if given.get("local_files_only") else {}
    return {key: options[key] for key in _HUB_OPTIONS if options.get(key) is not None}


def _is_monolora(source: str | None, options: Mapping[str, Any]) -> bool:
    """Whether a local folder or a repository on the hub holds an adapter of this type; False where there is none."""
    if source is None or os.path.isdir(source):
        return source is not None and is_monolora_folder(os.path.join(source, options.get("subfolder") or ""))
    path = find_adapter_config_file(source, **options)
    return path is not None and is_monolora_folder(os.path.dirname(path))


def _add_adapter(model: Any, adapter_name: str, config: MonoLoraConfig, tensors: dict[str, torch.Tensor]) -> None:
    """transformers' own ``load_adapter``, by PEFT's functions, with their checks.

    Args:
        model: a transformers model.
        adapter_name: a name that it has no adapter of.
        config: of the adapter.
        tensors: of the adapter, by their names in the file, without the ``PeftModel``'s prefix.

    Raises:
        AdapterFileError: if the tensors do not fit. The model has no adapter of that name then.
    """
    inject_adapter_in_model(config, model, adapter_name)
    model._hf_peft_config_loaded = True
    try:
        peft_model.set_peft_model_state_dict(model, tensors, adapter_name)
    except AdapterFileError:
        model.delete_adapter(adapter_name)
        raise
    if config.inference_mode:
        model.eval()
        for layer in model.modules():
            if isinstance(layer, (MonoLoraLayer, TrainableTokensLayer)):
                layer.requires_grad_(False)


def _swap_adapter(model: Any, adapter_name: str, config: MonoLoraConfig, tensors: dict[str, torch.Tensor]) -> None:
    """PEFT's hotswap for a transformers model; arguments and errors as for :func:`_add_adapter`."""
    hotswap.check_hotswap_configs_compatible(model.peft_config[adapter_name], config)
    named = hotswap._insert_adapter_name_into_state_dict(tensors, adapter_name, MEMORY_PREFIX)
    hotswap.hotswap_adapter_from_state_dict(model, named, adapter_name, config, MEMORY_PREFIX)


# Exact checkpoints.


def add_exact_checkpoints() -> None:
    """Register the quantization method of the checkpoints that ``export_exact`` writes."""
    auto.register_quantization_config(BAKED)(MonoLoraQuantizationConfig)
    auto.register_quantizer(BAKED)(MonoLoraHfQuantizer)


def to_diff_dict(original: Callable[..., dict[str, Any]], config: Any) -> dict[str, Any]:
    """Around ``PreTrainedConfig.to_diff_dict``: an exact checkpoint is written so that it fails without monolora.

    For an unknown quantization method stock transformers only warns, and loads the base model alone. It does fail where
    ``transformers_weights`` in ``config.json`` names no weights file, and prints that value: here the reason. Its own
    ``save_pretrained`` removes the attribute from the config before it writes, so it is added to what is written.
    """
    settings = original(config)
    if (settings.get("quantization_config") or {}).get("quant_method") == BAKED:
        settings["transformers_weights"] = NEEDS_MONOLORA
    return settings


def from_dict(original: Callable[..., Any], cls: type[Any], config_dict: dict[str, Any], **kwargs: Any) -> Any:
    """Around ``PreTrainedConfig.from_dict``: an explicit ``quantization_config=None`` is ignored.

    transformers would replace the setting in ``config.json`` by None.
    """
    recorded = config_dict.get("quantization_config")
    is_exact = isinstance(recorded, dict) and recorded.get("quant_method") == BAKED
    if is_exact and kwargs.get("quantization_config") is None:
        kwargs.pop("quantization_config", None)
    return original(cls, config_dict, **kwargs)


def merge_quantization_configs(
    original: Callable[..., Any], cls: type[Any], quantization_config: Any, quantization_config_from_args: Any
) -> Any:
    """Around ``AutoHfQuantizer.merge_quantization_configs``.

    Raises:
        InputError: for another method than the checkpoint's; transformers' own message names classes only.
    """
    recorded = quantization_config if isinstance(quantization_config, dict) else vars(quantization_config)
    is_exact = isinstance(quantization_config_from_args, MonoLoraQuantizationConfig)
    if recorded.get("quant_method") == BAKED and quantization_config_from_args is not None and not is_exact:
        raise InputError(
            "An exact checkpoint of MonoLoRA cannot be quantized while it is loaded. Leave quantization_config "
            "out, or load the adapter on its base, quantized."
        )
    return original(cls, quantization_config, quantization_config_from_args)


WRAPPERS: dict[str, Callable[..., Any]] = {
    "transformers.integrations.peft:PeftAdapterMixin.load_adapter": load_adapter,
    "transformers:PreTrainedConfig.to_diff_dict": to_diff_dict,
    "transformers:PreTrainedConfig.from_dict": from_dict,
    "transformers.quantizers.auto:AutoHfQuantizer.merge_quantization_configs": merge_quantization_configs,
}
