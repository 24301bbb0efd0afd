"""Teach PEFT (and the places around it that keep lists of methods) that MONOLORA exists.

PEFT has no public registration for a new *type*: ``PeftType`` is a plain enum and a few tables are
keyed by it. Everything that is changed in another library is changed here, once, and each change
steps aside when PEFT ships the type itself.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from peft import PeftType, peft_model
from peft.utils import CONFIG_NAME, hotswap, register_peft_method
from transformers.utils import find_adapter_config_file

from monolora.peft_type import NAME


def register() -> None:
    """Register the method. Importing ``monolora`` calls it; a second call does nothing."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    from monolora.config import MonoLoraConfig
    from monolora.model import MonoLoraModel

    _register_exact_checkpoints()
    peft_type = PeftType(NAME)
    if peft_type in PEFT_TYPE_TO_TUNER_MAPPING:
        return
    register_peft_method(
        name=NAME.lower(), config_cls=MonoLoraConfig, model_cls=MonoLoraModel, prefix=MonoLoraModel.prefix
    )
    hotswap.CONFIG_KEYS_TO_CHECK[peft_type] = [
        *(key for key in hotswap.CONFIG_KEYS_TO_CHECK[PeftType.LORA] if key != "alpha_pattern"),  # it follows the swap
        "activation",
    ]
    _check_files_that_peft_reads()
    _check_hotswap()
    _load_into_transformers()
    _name_offloaded_tensors()
    _end_answers_as_trained()


def _replace(owner: object, function: Callable[..., Any]) -> None:
    """Put ``function`` in the place of the one of its name."""
    setattr(owner, function.__name__, function)


def _names_monolora(folder: str) -> bool:
    """Whether ``folder`` is a local adapter folder of this type."""
    path = os.path.join(folder, CONFIG_NAME)
    if not os.path.isfile(path):
        return False
    with open(path, encoding="utf-8") as file:
        return bool(json.load(file).get("peft_type") == NAME)


def _check_files_that_peft_reads() -> None:
    """PEFT reads weights through one function, pickles too: let it see safetensors only.

    It then looks up what was saved beside A and B by name, before it asks the tuner: what is missing is named here.
    """
    from monolora.checkpoint import check_saved_beside, check_weights_file

    original = peft_model.load_peft_weights

    @functools.wraps(original)
    def load_peft_weights(model_id: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        folder = os.path.join(model_id, kwargs.get("subfolder") or "")
        if _names_monolora(folder):
            check_weights_file(folder)
        return original(model_id, *args, **kwargs)

    original_set = peft_model.set_peft_model_state_dict

    @functools.wraps(original_set)
    def set_peft_model_state_dict(
        model: Any, peft_model_state_dict: Any, adapter_name: str = "default", *args: Any, **kwargs: Any
    ) -> Any:
        if model.peft_config[adapter_name].peft_type == NAME:
            check_saved_beside(peft_model_state_dict, model, adapter_name)
        return original_set(model, peft_model_state_dict, adapter_name, *args, **kwargs)

    _replace(peft_model, load_peft_weights)
    _replace(hotswap, load_peft_weights)
    _replace(peft_model, set_peft_model_state_dict)


def _check_hotswap() -> None:
    """Hotswap goes past the tuner's own hooks, and fills tensors that a file lacks with zeros."""
    from monolora.checkpoint import check_no_lora_tensors, to_memory_name
    from monolora.loaders import check_swap, settle_swap, swap_names
    from monolora.targets import resolve_patterns

    original = hotswap.hotswap_adapter_from_state_dict

    @functools.wraps(original)
    def hotswap_adapter_from_state_dict(
        model: Any, state_dict: dict[str, Any], adapter_name: str, config: Any, *args: Any, **kwargs: Any
    ) -> None:
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

    _replace(hotswap, hotswap_adapter_from_state_dict)


def _load_into_transformers() -> None:
    """``model.load_adapter`` of transformers reads files itself: for MonoLoRA adapters it takes PEFT's functions.

    What is wrong with a file is an error there, where transformers logs it, or does not look (pickles, NaN, weights of
    the base model); and hotswap works, which in transformers is for LoRA alone.
    """
    from transformers.integrations.peft import PeftAdapterMixin

    from monolora.config import MonoLoraConfig
    from monolora.loaders import load_into_transformers, swap_in_transformers

    original = PeftAdapterMixin.load_adapter
    signature = inspect.signature(original)

    @functools.wraps(original)
    def load_adapter(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        source: Any = given.get("peft_model_id")
        config, tensors = given.get("peft_config"), given.get("adapter_state_dict")
        options = _hub_options(given)
        ours = _is_monolora(source, options) if config is None else config.peft_type == NAME
        if not ours or (source is None and tensors is None):
            return original(self, *args, **kwargs)
        name = given.get("adapter_name") or "default"
        known = self._hf_peft_config_loaded and name in self.peft_config
        hotswap_wanted = given.get("hotswap", "auto")
        if hotswap_wanted == "auto":
            hotswap_wanted = known and "_hotswap_enabled" in vars(self)
        if hotswap_wanted and not known:
            raise ValueError(f"There is no adapter named {name!r} to swap out. Load one first, without hotswap.")
        if known and not hotswap_wanted:
            raise ValueError(f"Adapter with name {name} already exists. Please use a different name.")
        config = MonoLoraConfig.from_pretrained(source, **options) if config is None else config
        tensors = peft_model.load_peft_weights(source, device="cpu", **options) if tensors is None else tensors
        if hotswap_wanted:
            return swap_in_transformers(self, name, config, tensors)
        config.inference_mode = not given.get("is_trainable", False)
        return load_into_transformers(self, name, config, tensors)

    _replace(PeftAdapterMixin, load_adapter)


_HUB_OPTIONS = ("subfolder", "revision", "cache_dir", "token", "force_download", "local_files_only")


def _hub_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Where on the hub the call of ``load_adapter`` looks, for PEFT's functions."""
    load_config = given.get("load_config")
    options = dict(load_config.download_kwargs or {}) if load_config is not None else {}
    options |= given.get("kwargs") or {}
    options |= given.get("adapter_kwargs") or {}
    options |= {"local_files_only": True} if given.get("local_files_only") else {}
    return {key: options[key] for key in _HUB_OPTIONS if options.get(key) is not None}


def _is_monolora(source: str | None, options: Mapping[str, Any]) -> bool:
    """Whether a local folder or a repository on the hub holds an adapter of this type; False where there is none."""
    if source is None or os.path.isdir(source):
        return source is not None and _names_monolora(os.path.join(source, options.get("subfolder") or ""))
    path = find_adapter_config_file(source, **options)
    return path is not None and _names_monolora(os.path.dirname(path))


def _name_offloaded_tensors() -> None:
    """For layers that stay on disk, PEFT copies the adapter file's tensors under their names there, not the model's."""
    from monolora.checkpoint import to_memory_name

    original = peft_model.PeftModel._update_offload

    @functools.wraps(original)
    def _update_offload(self: Any, offload_index: dict[str, Any], adapters_weights: dict[str, Any]) -> Any:
        return original(self, offload_index, {to_memory_name(key): value for key, value in adapters_weights.items()})

    _replace(peft_model.PeftModel, _update_offload)


def _end_answers_as_trained() -> None:
    """``AutoPeftModel`` makes the base anew, with the base's end tokens; the adapter may be trained on others."""
    from peft import auto
    from transformers.utils import GENERATION_CONFIG_NAME, cached_file

    from monolora.model_files import adopt_generation_config

    original = auto._BaseAutoPeftModel.from_pretrained.__func__  # type: ignore[attr-defined]

    @functools.wraps(original)
    def from_pretrained(cls: type[Any], pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        model = original(cls, pretrained_model_name_or_path, *args, **kwargs)
        if model.peft_type == NAME:
            where = {key: kwargs[key] for key in ("subfolder", "revision", "token", "cache_dir") if kwargs.get(key)}
            path = cached_file(
                pretrained_model_name_or_path,
                GENERATION_CONFIG_NAME,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
                **where,
            )
            if path is not None:
                adopt_generation_config(model.get_base_model(), os.path.dirname(path))
        return model

    auto._BaseAutoPeftModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment]


def _register_exact_checkpoints() -> None:
    """transformers learns to load what ``export_exact`` writes, and to write it so that it fails without monolora.

    An explicit ``quantization_config=None`` would put None in the place of what ``config.json`` says; it asks for
    nothing, and is taken so. Another one is refused before transformers does, whose text names classes only.

    Where a quantization method is unknown, stock transformers warns and loads the base model alone. It does fail where
    ``transformers_weights`` in ``config.json`` names no weights file, and shows what stands there. Its own
    ``save_pretrained`` takes that attribute off the config before it writes, so it is put into what is written.
    """
    from transformers import PreTrainedConfig
    from transformers.quantizers import auto

    from monolora.errors import InputError
    from monolora.merge.quantizer import NEEDS_MONOLORA, MonoLoraHfQuantizer, MonoLoraQuantizationConfig
    from monolora.merge.unload import BAKED

    if BAKED in auto.AUTO_QUANTIZER_MAPPING:
        return
    auto.register_quantization_config(BAKED)(MonoLoraQuantizationConfig)
    auto.register_quantizer(BAKED)(MonoLoraHfQuantizer)
    original = PreTrainedConfig.to_diff_dict

    @functools.wraps(original)
    def to_diff_dict(self: Any) -> dict[str, Any]:
        written = original(self)
        if (written.get("quantization_config") or {}).get("quant_method") == BAKED:
            written["transformers_weights"] = NEEDS_MONOLORA
        return written

    _replace(PreTrainedConfig, to_diff_dict)
    original_from_dict = PreTrainedConfig.from_dict.__func__  # type: ignore[attr-defined]

    @functools.wraps(original_from_dict)
    def from_dict(cls: type[Any], config_dict: dict[str, Any], **kwargs: Any) -> Any:
        described = config_dict.get("quantization_config")
        if (
            isinstance(described, dict)
            and described.get("quant_method") == BAKED
            and kwargs.get("quantization_config") is None
        ):
            kwargs.pop("quantization_config", None)
        return original_from_dict(cls, config_dict, **kwargs)

    original_merge = auto.AutoHfQuantizer.merge_quantization_configs

    @functools.wraps(original_merge)
    def merge_quantization_configs(quantization_config: Any, quantization_config_from_args: Any) -> Any:
        kept = quantization_config if isinstance(quantization_config, dict) else vars(quantization_config)
        ours = isinstance(quantization_config_from_args, MonoLoraQuantizationConfig)
        if kept.get("quant_method") == BAKED and quantization_config_from_args is not None and not ours:
            raise InputError(
                "An exact checkpoint of MonoLoRA cannot be quantized while it is loaded. Leave quantization_config "
                "out, or load the adapter on its base, quantized."
            )
        return original_merge(quantization_config, quantization_config_from_args)

    PreTrainedConfig.from_dict = classmethod(from_dict)  # type: ignore[assignment]
    auto.AutoHfQuantizer.merge_quantization_configs = staticmethod(merge_quantization_configs)  # type: ignore[assignment]
