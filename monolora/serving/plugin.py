"""The plugin: vLLM calls :func:`register` in each of its processes, by the entry point ``vllm.general_plugins``.

The way of an adapter through vLLM, and what is wrapped on it:

    a server looks for its name       resolver.py   folders with MonoLoRA adapters are found too
    it is added, a request names it   requests.py   its files and its name are checked before the engine sees it
    its answers end                   end_tokens.py where its own folder says
    all workers are asked             executor.py   one that refuses leaves nothing behind
    a worker reads it                 loading.py    names, options, shapes
    it gets a slot                    gate.py       the slot's activation
    a batch goes through a layer      gate.py       every row's activation

Checkpoints of the exact merge need none of this (exact.py), but that other weights read into them have their config:

    weights are read, or reloaded     reload.py     the units are those of the engine's own config
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from monolora.checkpoint import AdapterFileError
from monolora.errors import InputError
from monolora.peft_type import NAME
from monolora.serving import end_tokens, executor, gate, loading, reload, requests, resolver, versions
from monolora.serving.folders import peft_type
from monolora.serving.seams import MissingSeamError, wrap_all

_LOG = logging.getLogger("vllm.monolora")  # formatted as vLLM's own lines, once vLLM has set up its logging

_LOAD = "vllm.lora.worker_manager:WorkerLoRAManager._load_adapter"
WRAPPERS: dict[str, Callable[..., Any]] = {
    "vllm.plugins.lora_resolvers.filesystem_resolver:FilesystemResolver._get_lora_req_from_path": resolver.find_adapter,
    "vllm.v1.engine.input_processor:InputProcessor._validate_lora": requests.validate_lora,
    "vllm.v1.engine.input_processor:InputProcessor.process_inputs": end_tokens.process_inputs,
    "vllm.v1.engine.llm_engine:LLMEngine.add_request": requests.add_request,
    "vllm.v1.engine.llm_engine:LLMEngine.add_lora": requests.add_to_engine,
    "vllm.v1.engine.llm_engine:LLMEngine.remove_lora": requests.remove_from_engine,
    "vllm.v1.engine.async_llm:AsyncLLM.add_lora": requests.add_to_server,
    "vllm.v1.executor.abstract:Executor.add_lora": executor.add_lora,
    _LOAD: loading.load_adapter,
    "vllm.lora.lora_model:parse_fine_tuned_lora_name": loading.parse_fine_tuned_lora_name,
    "vllm.model_executor.model_loader.default_loader:DefaultModelLoader.get_all_weights": reload.get_all_weights,
    "vllm.lora.model_manager:get_punica_wrapper": gate.get_punica_wrapper,
    "vllm.lora.model_manager:LoRAModelManager.activate_adapter": gate.activate_adapter,
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._get_prompt_logprobs_dict": gate.prompt_logprobs,
}
_done = False


def register() -> None:
    """Teach this process's vLLM to serve MonoLoRA adapters; a second call does nothing.

    With a vLLM that this was not made for, nothing is changed but the message with which it refuses them.
    """
    global _done
    if _done:
        return
    _done = True
    try:
        versions.check_vllm()
        wrap_all(WRAPPERS)
    except (InputError, MissingSeamError) as trouble:
        _step_aside(str(trouble))
        return
    from vllm.lora.lora_model import LoRAModel

    LoRAModel.activation = "identity"  # what an adapter has that nobody says otherwise of
    from monolora.serving import exact

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

    with contextlib.suppress(MissingSeamError):  # then vLLM's own loader says that it knows no such tensors
        wrap_all({_LOAD: refuse})
