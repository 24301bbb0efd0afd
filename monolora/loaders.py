"""Checks of the two loaders that go past the tuner's own hooks: PEFT's hotswap and transformers' ``load_adapter``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.hotswap import _update_scaling
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PreTrainedModel

from monolora.checkpoint import (
    AdapterFileError,
    check_finite,
    check_no_lora_tensors,
    check_tensors,
    is_adapter_tensor,
    is_unit_tensor,
    origin_of,
    warn_of_other_base,
)
from monolora.config import MonoLoraConfig
from monolora.layer import MonoLoraLayer

# What ``.lora_`` in the names of a file becomes while transformers reads a MonoLoRA adapter, so that it fits nowhere.
PLAIN_LORA = ".plain.lora_"


def model_name(model: nn.Module) -> str | None:
    """Path or hub id that a transformers model was loaded from; None for other models."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return base.name_or_path if isinstance(base, PreTrainedModel) else None


def check_swap(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], adapter_name: str, config: MonoLoraConfig
) -> None:
    """Check the tensors of a file that is about to be swapped into ``adapter_name``.

    Args:
        model: the adapted model, compiled or not.
        tensors: the file's tensors, by the model's names.
        adapter_name: the adapter that gives way.
        config: the file's config. Its rank may be another one, and it may target fewer modules.

    Raises:
        AdapterFileError: naming the first missing, misshapen or foreign tensor, or one that is not finite.
    """
    model = _uncompiled(model)
    expected: dict[str, torch.Size] = {}
    for path, layer, rank, _ in _targeted(model, config):
        for name, value in layer.state_dict().items():
            if is_unit_tensor(f"{path}.{name}", adapter_name):
                expected[f"{path}.{name}"] = _with_rank(layer, name, value.shape, rank)
    loaded_from = model_name(model)
    check_tensors(tensors, expected, model.state_dict(), config.base_model_name_or_path, loaded_from)
    for key in tensors:
        if ".lora_embedding_" in key or not is_unit_tensor(key, adapter_name):
            raise AdapterFileError(
                f"Tensor {key!r} cannot be swapped in: hotswap handles A and B of linear and convolution layers only. "
                "Load the adapter under a name of its own instead."
            )
    warn_of_other_base(config.base_model_name_or_path, loaded_from)


def settle_swap(model: nn.Module, adapter_name: str, config: MonoLoraConfig) -> None:
    """Give every layer the rank, alpha and scaling of the config that was swapped in.

    PEFT 0.21 looks patterns up by the names of tensors, where they match nothing, and leaves rank and alpha as they
    were.
    """
    for _, layer, rank, alpha in _targeted(_uncompiled(model), config):
        layer.r[adapter_name], layer.lora_alpha[adapter_name] = rank, alpha
        _update_scaling(layer, adapter_name, alpha / (math.sqrt(rank) if config.use_rslora else rank))


def _uncompiled(model: nn.Module) -> nn.Module:
    """The model inside of what ``torch.compile`` returns, or the model itself."""
    return dict(model.named_children()).get("_orig_mod", model)


def _targeted(model: nn.Module, config: MonoLoraConfig) -> Iterator[tuple[str, MonoLoraLayer, int, float]]:
    """Name, layer, rank and alpha of every adapted layer that ``config`` targets."""
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    for path, layer in model.named_modules():
        target = path.removeprefix("base_model.model.")
        if isinstance(layer, MonoLoraLayer) and check_target_module_exists(config, target):
            rank = ranks.get(get_pattern_key(list(ranks), target), config.r)
            yield path, layer, rank, alphas.get(get_pattern_key(list(alphas), target), config.lora_alpha)


def _with_rank(layer: MonoLoraLayer, name: str, shape: torch.Size, rank: int) -> torch.Size:
    """``shape`` of the layer's tensor ``name``, had the adapter ``rank`` units."""
    if name.endswith(".bias"):
        return shape
    if name.startswith(("lora_A.", "lora_embedding_A.")):
        return torch.Size([rank, *shape[1:]])
    base = layer.get_base_layer()
    groups = base.groups if isinstance(base, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else 1
    return torch.Size([shape[0], rank // groups, *shape[2:]])


def check_native_load(model: Any, adapter_name: str, info: Any) -> None:
    """Make an error of what transformers' own ``load_adapter`` reports as a log line, for a MonoLoRA adapter.

    Args:
        model: the transformers model the adapter was loaded into.
        adapter_name: its name there.
        info: what ``load_adapter`` returned, called with ``ignore_mismatched_sizes=True``.

    Raises:
        AdapterFileError: if tensors were missing, foreign or of another shape, or are not finite.
    """
    trained_on = model.peft_config[adapter_name].base_model_name_or_path
    origin = origin_of(trained_on, model.name_or_path)
    check_no_lora_tensors(key.replace(PLAIN_LORA, ".lora_") for key in info.unexpected_keys if PLAIN_LORA in key)
    # transformers goes by substrings: "a" finds the tensors of adapter "ab" missing.
    missing = [key for key in info.missing_keys if is_adapter_tensor(key, adapter_name)]
    for what, names in {"lacks": missing, "has the foreign": info.unexpected_keys}.items():
        if names:
            raise AdapterFileError(f"The adapter file {what} tensor {min(names)!r} ({len(names)} such). {origin}")
    for key, in_file, needed in sorted(info.mismatched_keys):
        raise AdapterFileError(
            f"Tensor {key!r} has shape {tuple(in_file)} in the file, this model needs {tuple(needed)}. {origin}"
        )
    check_finite({name: value for name, value in model.named_parameters() if is_adapter_tensor(name, adapter_name)})
    warn_of_other_base(trained_on, model.name_or_path)
