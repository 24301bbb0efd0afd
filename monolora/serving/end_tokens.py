"""Where an answer of an adapter ends: vLLM knows the base's end tokens, and an adapter may be trained on others."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from transformers.utils import GENERATION_CONFIG_NAME

from monolora.model_files import end_tokens
from monolora.serving.folders import served_config


def process_inputs(original: Callable[..., Any], processor: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``InputProcessor.process_inputs``: the end tokens in a MonoLoRA adapter's folder end its answers too."""
    request = original(processor, *args, **kwargs)
    sampling, lora = request.sampling_params, request.lora_request
    if sampling is None or lora is None or not os.path.isdir(lora.lora_path) or served_config(lora.lora_path) is None:
        return request
    ids = _end_tokens(lora.lora_path, _state(lora.lora_path))
    sampling._all_stop_token_ids.update(ids)  # min_tokens goes by these
    if not sampling.ignore_eos:
        sampling.stop_token_ids = sorted({*sampling.stop_token_ids, *ids})
    return request


def _state(folder: str) -> int | None:
    """A value that changes when the file does."""
    path = os.path.join(folder, GENERATION_CONFIG_NAME)
    return os.stat(path).st_mtime_ns if os.path.isfile(path) else None


@functools.lru_cache(maxsize=1024)
def _end_tokens(folder: str, state: object) -> tuple[int, ...]:
    return tuple(end_tokens(folder))
