"""Adapters that a server finds by name in ``VLLM_LORA_RESOLVER_CACHE_DIR``, or in a repository of the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from monolora.peft_type import NAME


async def find_adapter(
    original: Callable[..., Any], resolver: Any, lora_name: str, lora_path: str, base_model_name: str
) -> Any:
    """Around ``FilesystemResolver._get_lora_req_from_path``, which knows the type LORA alone.

    Returns:
        A ``LoRARequest`` for a MonoLoRA adapter of this base too, by vLLM's own rule: the config's base is named as the
        server's is. None for any other folder.
    """
    from vllm.lora.request import LoRARequest

    found = await original(resolver, lora_name, lora_path, base_model_name)
    config = os.path.join(lora_path, "adapter_config.json")
    if found is not None or not os.path.exists(config):
        return found
    with open(config) as file:
        settings = json.load(file)
    if settings["peft_type"] != NAME or settings.get("base_model_name_or_path") != base_model_name:
        return None
    return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=lora_path)  # the server gives it a number
