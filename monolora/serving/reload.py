"""Weights are reloaded: into the places, scalings and activations that the engine's own ``config.json`` has made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from monolora.errors import InputError
from monolora.merge.unload import BAKED


def get_all_weights(original: Callable[..., Any], loader: Any, model_config: Any, model: Any) -> Any:
    """Around ``DefaultModelLoader.get_all_weights``, with which vLLM reads a checkpoint, at the start and later.

    It reads no config when it reads another checkpoint into a model (``reload_weights``).

    Raises:
        InputError: if the units there are not those of the engine's own config; before a weight is touched.
    """
    from vllm.transformers_utils.repo_utils import get_hf_file_to_dict

    path, here = model_config.model, _groups(model_config.hf_config.to_dict())
    if here is None and not os.path.isdir(path):
        return original(loader, model_config, model)  # such as one of the hub: its config was read a moment ago
    there = get_hf_file_to_dict("config.json", path, model_config.revision) or {}
    if _groups(there) != here:
        raise InputError(
            f"{path} keeps other MonoLoRA units than the checkpoint that this vLLM was started with, by their "
            "config.json. Start vLLM anew on it."
        )
    return original(loader, model_config, model)


def _groups(config: Mapping[str, Any]) -> Any:
    """The modules that keep units, as an exact checkpoint lists them; None for any other."""
    quantization = config.get("quantization_config") or {}
    return quantization["groups"] if quantization.get("quant_method") == BAKED else None
