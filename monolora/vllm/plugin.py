"""Where an answer of an adapter ends: vLLM knows the base's end tokens, and an adapter may be trained on others."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from transformers.utils import GENERATION_CONFIG_NAME

from monolora.activations import CONTROL
from monolora.checkpoint import AdapterFileError
from monolora.errors import InputError
from monolora.merge.unload import BAKED
from monolora.model_files import end_tokens
from monolora.patching import MissingNameError, check_version, wrap_all
from monolora.peft_type import NAME
from monolora.vllm import gate, loading, requests
from monolora.vllm.adapter_folders import peft_type, served_config


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


async def find_adapter(
    original: Callable[..., Any], resolver: Any, lora_name: str, lora_path: str, base_model_name: str
) -> Any:
    """Around ``FilesystemResolver._get_lora_req_from_path``, which knows the type LORA alone.

    Returns:
        A ``LoRARequest`` for a MonoLoRA adapter of this base too, by vLLM's own rule: the config's base is named as the
        server's is. None for any other folder.
    """
    from vllm.lora.request import LoRARequest

    request = await original(resolver, lora_name, lora_path, base_model_name)
    config = os.path.join(lora_path, "adapter_config.json")
    if request is not None or not os.path.exists(config):
        return request
    with open(config) as file:
        settings = json.load(file)
    if settings["peft_type"] != NAME or settings.get("base_model_name_or_path") != base_model_name:
        return None
    return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=lora_path)  # the server gives it a number


_LOG = logging.getLogger("vllm.monolora")  # formatted as vLLM's own lines, once vLLM has set up its logging

_LOAD = "vllm.lora.worker_manager:WorkerLoRAManager._load_adapter"
WRAPPERS: dict[str, Callable[..., Any]] = {
    "vllm.plugins.lora_resolvers.filesystem_resolver:FilesystemResolver._get_lora_req_from_path": find_adapter,
    "vllm.v1.engine.input_processor:InputProcessor._validate_lora": requests.validate_lora,
    "vllm.v1.engine.input_processor:InputProcessor.process_inputs": process_inputs,
    "vllm.v1.engine.llm_engine:LLMEngine.add_request": requests.add_request,
    "vllm.v1.engine.llm_engine:LLMEngine.add_lora": requests.add_to_engine,
    "vllm.v1.engine.llm_engine:LLMEngine.remove_lora": requests.remove_from_engine,
    "vllm.v1.engine.async_llm:AsyncLLM.add_lora": requests.add_to_server,
    "vllm.v1.executor.abstract:Executor.add_lora": loading.add_lora,
    _LOAD: loading.load_adapter,
    "vllm.lora.lora_model:is_base_embedding_weights": loading.is_base_embedding_weights,
    "vllm.lora.lora_model:parse_fine_tuned_lora_name": loading.parse_fine_tuned_lora_name,
    "vllm.model_executor.model_loader.default_loader:DefaultModelLoader.get_all_weights": get_all_weights,
    "vllm.lora.worker_manager:create_lora_manager": gate.create_lora_manager,
    "vllm.lora.model_manager:get_punica_wrapper": gate.get_punica_wrapper,
    "vllm.lora.model_manager:LoRAModelManager.activate_adapter": gate.activate_adapter,
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._get_prompt_logprobs_dict": gate.prompt_logprobs,
}


@functools.cache
def register() -> None:
    """Teach this process's vLLM to serve MonoLoRA adapters; a second call does nothing.

    With a vLLM that this was not made for, nothing is changed but the message with which it refuses them.
    """
    try:
        check_version("vllm")
        wrap_all(WRAPPERS)
    except InputError as trouble:
        _step_aside(str(trouble))
        return
    from vllm.lora.lora_model import LoRAModel

    LoRAModel.activation, LoRAModel.thresholds = CONTROL, {}  # of LoRA adapters; those of MonoLoRA set their own
    from monolora.vllm import exact

    exact.register()


def is_registered() -> bool:
    """Whether this process's vLLM serves MonoLoRA adapters."""
    from vllm.lora.lora_model import LoRAModel

    return "activation" in vars(LoRAModel)


def check_not_left_out() -> None:
    """Check, before an engine is started, that vLLM will load the plugin.

    Raises:
        InputError: if ``VLLM_PLUGINS`` leaves it out.
    """
    from vllm import envs

    if envs.VLLM_PLUGINS is not None and "monolora" not in envs.VLLM_PLUGINS:
        raise InputError("vLLM leaves the plugin out: VLLM_PLUGINS must be unset, or name monolora.")


def _step_aside(trouble: str) -> None:
    _LOG.error("MonoLoRA adapters will be refused. %s", trouble)

    def refuse(original: Callable[..., Any], worker_manager: Any, lora_request: Any, *args: Any, **kwargs: Any) -> Any:
        if peft_type(lora_request.lora_path) == NAME:
            raise AdapterFileError(f"{lora_request.lora_path} is a MonoLoRA adapter. {trouble}")
        return original(worker_manager, lora_request, *args, **kwargs)

    with contextlib.suppress(MissingNameError):  # then vLLM's own loader says that it knows no such tensors
        wrap_all({_LOAD: refuse})
