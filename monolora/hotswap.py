"""Hotswap: replacing a loaded adapter's tensors by another's.

PEFT's hotswap bypasses the tuner's hooks and leaves rank, alpha and config unchanged; here the file is checked first,
and the model's record of the adapter is updated afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.hotswap import _update_scaling
from peft.utils.other import get_pattern_key
from torch import nn

from monolora.checkpoint import (
    AdapterFileError,
    Room,
    check_tensors,
    is_unit_tensor,
    model_name,
    module_of,
    origin_of,
    saved_beside,
    warn_of_other_base,
)
from monolora.config import MonoLoraConfig
from monolora.layer import MonoLoraLayer
from monolora.targets import module_names


def check_swap(model: Any, tensors: Mapping[str, torch.Tensor], adapter_name: str, config: MonoLoraConfig) -> None:
    """Check the tensors of a file that is about to be swapped into ``adapter_name``.

    Args:
        model: the adapted model, compiled or not.
        tensors: the file's tensors, by the model's names.
        adapter_name: the adapter that is replaced.
        config: the file's config. Its rank may be another one, and it may target fewer modules.

    Raises:
        AdapterFileError: naming the first missing, misshapen or foreign tensor, one that is not finite, or what the
            replaced adapter trains outside of A and B.
    """
    model = _uncompiled(model)
    expected: dict[str, torch.Tensor] = {}
    for path, layer, rank, _ in _targeted(model, config):
        for name, value in layer.state_dict().items():
            key = f"{path}.{name}"
            if not is_unit_tensor(key, adapter_name):
                continue
            if name.startswith("lora_embedding_"):
                raise AdapterFileError(_unswappable(key))
            expected[key] = torch.empty(_with_rank(layer, name, value.shape, rank), dtype=value.dtype, device="meta")
    loaded_from = model_name(model)
    check_tensors(tensors, Room(expected, {}, {}, {}, None), origin_of(config.base_model_name_or_path, loaded_from))
    beside = sorted(saved_beside(model, adapter_name))
    if beside or model.peft_config[adapter_name].bias != "none":
        raise AdapterFileError(_unswappable(beside[0] if beside else "bias"))
    warn_of_other_base(config.base_model_name_or_path, loaded_from)


def _unswappable(what: str) -> str:
    return (
        f"{what!r} cannot be swapped in: hotswap handles units of linear and convolution layers only. Load the "
        "adapter under a name of its own instead."
    )


def swap_names(model: nn.Module) -> list[str]:
    """Names of the modules of an adapted model, compiled or not, as the base model has them."""
    return [name.removeprefix("base_model.model.") for name in module_names(_uncompiled(model))]


def settle_swap(model: Any, adapter_name: str, config: MonoLoraConfig) -> None:
    """Update every layer, and the model's record of the adapter, to the config that was swapped in.

    PEFT 0.21 looks up patterns by tensor names, which never match, and leaves rank, alpha and config unchanged.
    """
    model = _uncompiled(model)
    targeted = {path: (rank, alpha) for path, _, rank, alpha in _targeted(model, config)}
    for path, layer in model.named_modules():
        if not isinstance(layer, MonoLoraLayer) or adapter_name not in layer.activation:
            continue
        if path not in targeted:  # PEFT has filled it with zeros
            layer.vacant |= {adapter_name}
            continue
        rank, alpha = targeted[path]
        layer.vacant -= {adapter_name}
        layer.r[adapter_name], layer.lora_alpha[adapter_name] = rank, alpha
        _update_scaling(layer, adapter_name, alpha / (math.sqrt(rank) if config.use_rslora else rank))
    before = model.peft_config[adapter_name]
    model.peft_config[adapter_name] = replace(
        config, inference_mode=before.inference_mode, base_model_name_or_path=before.base_model_name_or_path
    )


def used_units(model: nn.Module, adapter_name: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of an adapter without the padding of hotswap.

    For an adapter with fewer units or modules PEFT keeps the larger tensors, padded with zeros, as when it prepares for
    compilation. The adapter's config has the true numbers.
    """
    # FSDP's wrappers are in the names of modules, and not in those of tensors.
    layers = {path.replace("_fsdp_wrapped_module.", ""): layer for path, layer in model.named_modules()}
    used = dict(tensors)
    for key, value in tensors.items():
        path, name = module_of(key, adapter_name)
        layer = layers.get(path)
        if not isinstance(layer, MonoLoraLayer):
            continue
        if adapter_name in layer.vacant:
            del used[key]
        elif value.numel():  # ZeRO-3 shows none
            used[key] = _first_units(layer, name, value, layer.r[adapter_name])
    return used


def _first_units(layer: MonoLoraLayer, name: str, value: torch.Tensor, rank: int) -> torch.Tensor:
    """``value`` of the tensor ``name`` for the first ``rank`` units; of each group, where the layer has groups."""
    shape = _with_rank(layer, name, value.shape, rank)
    if shape == value.shape:
        return value
    groups = _groups(layer)
    if name.startswith("lora_A.") and groups > 1:
        return value.unflatten(0, (groups, -1))[:, : rank // groups].flatten(0, 1).clone()
    return value[tuple(slice(size) for size in shape)].clone()


def _uncompiled(model: nn.Module) -> Any:
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
    if name.startswith(("lora_A.", "lora_embedding_A.", "lora_threshold.")):
        return torch.Size([rank, *shape[1:]])
    return torch.Size([shape[0], rank // _groups(layer), *shape[2:]])


def _groups(layer: MonoLoraLayer) -> int:
    base = layer.get_base_layer()
    return base.groups if isinstance(base, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else 1
