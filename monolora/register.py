"""Teach PEFT (and the places around it that keep lists of methods) that MONOLORA exists.

PEFT has no public registration for a new *type*: ``PeftType`` is a plain enum and a few tables are
keyed by it. Everything that is changed in another library is changed here, once, and each change
steps aside when PEFT ships the type itself.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from peft import PeftType
from peft.utils import hotswap, register_peft_method, transformers_weight_conversion

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

    peft_type = PeftType(NAME)
    if peft_type in PEFT_TYPE_TO_TUNER_MAPPING:
        return
    register_peft_method(
        name=NAME.lower(), config_cls=MonoLoraConfig, model_cls=MonoLoraModel, prefix=MonoLoraModel.prefix
    )
    hotswap.CONFIG_KEYS_TO_CHECK[peft_type] = [*hotswap.CONFIG_KEYS_TO_CHECK[PeftType.LORA], "activation"]
    _read_our_names_in_hotswap()
    _read_our_names_in_transformers()


def _read_our_names_in_hotswap() -> None:
    """Hotswap reads adapter files past the tuner's own hooks: translate the names there."""
    from monolora.checkpoint import to_memory_names

    original = hotswap.load_peft_weights

    @functools.wraps(original)
    def load_peft_weights(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return to_memory_names(original(*args, **kwargs))

    hotswap.load_peft_weights = load_peft_weights


def _read_our_names_in_transformers() -> None:
    """``model.load_adapter`` of transformers reads the file itself, with a list of renamings from PEFT.

    Two wraps: one adds our renaming to that list; the other turns what transformers only logs (missing,
    foreign or misshapen tensors) and what it does not look at (pickles, NaN) into errors.
    """
    from transformers.core_model_loading import WeightRenaming
    from transformers.integrations.peft import PeftAdapterMixin

    from monolora.checkpoint import DISK_PREFIX, MEMORY_PREFIX, check_native_load, check_weights_file

    original_mapping = transformers_weight_conversion.build_peft_weight_mapping

    @functools.wraps(original_mapping)
    def build_peft_weight_mapping(weight_conversions: Any, adapter_name: str, peft_config: Any = None) -> list[Any]:
        mapping = original_mapping(weight_conversions, adapter_name, peft_config=peft_config)
        if peft_config is not None and peft_config.peft_type == PeftType(NAME):
            mapping.append(WeightRenaming(rf"\.{DISK_PREFIX}", f".{MEMORY_PREFIX}"))
        return mapping

    original_load = PeftAdapterMixin.load_adapter

    @functools.wraps(original_load)
    def load_adapter(
        self: Any, peft_model_id: str | None = None, adapter_name: str | None = None, **kwargs: Any
    ) -> Any:
        check_weights_file(os.path.join(peft_model_id or "", (kwargs.get("adapter_kwargs") or {}).get("subfolder", "")))
        info = original_load(self, peft_model_id, adapter_name, **kwargs)
        check_native_load(self, adapter_name or "default", info)
        return info

    transformers_weight_conversion.build_peft_weight_mapping = build_peft_weight_mapping
    PeftAdapterMixin.load_adapter = load_adapter
