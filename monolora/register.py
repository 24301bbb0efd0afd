"""Teach PEFT (and the places around it that keep lists of methods) that MONOLORA exists.

PEFT has no public registration for a new *type*: ``PeftType`` is a plain enum and a few tables are
keyed by it. Everything that is changed in another library is changed here, once, and each change
steps aside when PEFT ships the type itself.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable
from typing import Any

from peft import PeftType, peft_model
from peft.utils import CONFIG_NAME, hotswap, register_peft_method, transformers_weight_conversion

NAME = "MONOLORA"


def extend_peft_type() -> None:
    """Add ``PeftType.MONOLORA``: a true member, so that ``.value``, pickle, deepcopy and JSON work."""
    if NAME in PeftType.__members__:
        return
    member = str.__new__(PeftType, NAME)
    member._name_ = NAME
    member._value_ = NAME
    setattr(PeftType, NAME, member)
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member


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
    hotswap.CONFIG_KEYS_TO_CHECK[peft_type] = [*hotswap.CONFIG_KEYS_TO_CHECK[PeftType.LORA], "activation"]
    _check_files_that_peft_reads()
    _check_hotswap()
    _check_native_loads()
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
    """PEFT reads weights through one function, pickles too: let it see safetensors only."""
    from monolora.checkpoint import check_weights_file

    original = peft_model.load_peft_weights

    @functools.wraps(original)
    def load_peft_weights(model_id: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        folder = os.path.join(model_id, kwargs.get("subfolder") or "")
        if _names_monolora(folder):
            check_weights_file(folder)
        return original(model_id, *args, **kwargs)

    _replace(peft_model, load_peft_weights)
    _replace(hotswap, load_peft_weights)


def _check_hotswap() -> None:
    """Hotswap goes past the tuner's own hooks, and fills tensors that a file lacks with zeros."""
    from monolora.checkpoint import check_no_lora_tensors, to_memory_names
    from monolora.loaders import check_swap, settle_swap

    original = hotswap.hotswap_adapter_from_state_dict

    @functools.wraps(original)
    def hotswap_adapter_from_state_dict(
        model: Any, state_dict: dict[str, Any], adapter_name: str, config: Any, *args: Any, **kwargs: Any
    ) -> None:
        if config.peft_type != NAME:
            original(model, state_dict, adapter_name, config, *args, **kwargs)
            return
        check_no_lora_tensors(state_dict)
        state_dict = to_memory_names(state_dict)
        check_swap(model, state_dict, adapter_name, config)
        original(model, state_dict, adapter_name, config, *args, **kwargs)
        settle_swap(model, adapter_name, config)

    _replace(hotswap, hotswap_adapter_from_state_dict)


def _check_native_loads() -> None:
    """``model.load_adapter`` of transformers reads the file itself, with a list of renamings from PEFT.

    Two wraps: one adds our renaming to that list; the other turns what transformers only logs (missing,
    foreign or misshapen tensors) and what it does not look at (pickles, NaN) into errors, after which the
    adapter is gone again.
    """
    from transformers.core_model_loading import WeightRenaming
    from transformers.integrations.peft import PeftAdapterMixin

    from monolora.checkpoint import DISK_PREFIX, MEMORY_PREFIX, AdapterFileError, check_weights_file
    from monolora.loaders import PLAIN_LORA, check_native_load

    original_mapping = transformers_weight_conversion.build_peft_weight_mapping

    @functools.wraps(original_mapping)
    def build_peft_weight_mapping(weight_conversions: Any, adapter_name: str, peft_config: Any = None) -> list[Any]:
        mapping = original_mapping(weight_conversions, adapter_name, peft_config=peft_config)
        if peft_config is not None and peft_config.peft_type == NAME:
            mapping.append(WeightRenaming(rf"\.{MEMORY_PREFIX}", PLAIN_LORA))
            mapping.append(WeightRenaming(rf"\.{DISK_PREFIX}", f".{MEMORY_PREFIX}"))
        return mapping

    original_load = PeftAdapterMixin.load_adapter
    signature = inspect.signature(original_load)

    def is_ours(given: dict[str, Any]) -> bool:
        """Whether a call is seen to be about MonoLoRA before it is made; if so, its local file is checked."""
        if given.get("peft_config") is not None:
            return bool(given["peft_config"].peft_type == NAME)
        subfolder = (given.get("adapter_kwargs") or {}).get("subfolder") or ""
        folder = os.path.join(given.get("peft_model_id") or "", subfolder)
        ours = _names_monolora(folder)
        if ours:
            check_weights_file(folder)
        return ours

    @functools.wraps(original_load)
    def load_adapter(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        adapter_name = given.get("adapter_name") or "default"
        if is_ours(given):
            kwargs["ignore_mismatched_sizes"] = True  # reported to us instead of raised without the tensor's name
        info = original_load(self, *args, **kwargs)
        if self.peft_config[adapter_name].peft_type == NAME:
            try:
                check_native_load(self, adapter_name, info)
            except AdapterFileError:
                self.delete_adapter(adapter_name)
                raise
        return info

    _replace(transformers_weight_conversion, build_peft_weight_mapping)
    _replace(PeftAdapterMixin, load_adapter)


def _name_offloaded_tensors() -> None:
    """For layers that stay on disk, PEFT copies the adapter file's tensors under their names there, not the model's."""
    from monolora.checkpoint import to_memory_names

    original = peft_model.PeftModel._update_offload

    @functools.wraps(original)
    def _update_offload(self: Any, offload_index: dict[str, Any], adapters_weights: dict[str, Any]) -> Any:
        return original(self, offload_index, to_memory_names(adapters_weights))

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
