"""Answers by vLLM, offline: base and adapters of a run in one engine, in mixed batches.

Before the first answer, the canary checks that vLLM answers through each adapter as transformers does
(:mod:`monolora.vllm.canary`). All requests are enqueued at once and answers are yielded as they finish: vLLM batches
as it does for ``LLM.generate``, and little is lost if the process is killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from monolora.adapters import adapter_config
from monolora.data.prompt_sets import sampling_seed
from monolora.errors import RunError, in_one_line
from monolora.files import trusts_code
from monolora.model_files import end_tokens
from monolora.vllm import CanaryUnknownError
from monolora.vllm.adapter_folders import largest_rank, served_config, vllm_rank
from monolora.vllm.canary import measure
from monolora.vllm.generation import memory_share, prepare_environment
from monolora.vllm.plugin import check_not_left_out

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.lora.request import LoRARequest

MAX_ADAPTERS_PER_BATCH = 8  # vLLM reserves memory for as many adapters of the largest rank
CANARY_PROMPTS, CANARY_TOKENS = 8, 256


def answers(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Generate the answers that are not done yet.

    Args:
        job: ``model``, the folder of the base; ``adapters``, folders by name; ``items``, each with ``key``, ``adapter``
            (a name, or None for the base), ``token_ids`` and ``max_new_tokens``; ``done``, keys; ``share``, this
            engine's number and how many engines share the items; ``settings``, as
            :func:`monolora.eval.generate.engine_settings` makes them.

    Yields:
        First ``{"canary": {...}}`` for every adapter with items (for the base if no adapter has any), then one answer
        per item of this engine's share.

    Raises:
        InputError: if vLLM cannot serve the model or an adapter.
        RunError: if vLLM does not start, or the canary says that its answers would be wrong.
    """
    done = set(job["done"])
    rank, engines = job["share"]
    items = [item for item in job["items"] if item["key"] not in done][rank::engines]
    settings = job["settings"]
    if settings["batch_invariant"]:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    prepare_environment()
    requests = lora_requests({name: job["adapters"][name] for name in sorted(_adapters_of(items))})
    llm = start(job["model"], requests, settings)
    if settings["canary"]:
        checked: list[LoRARequest | None] = [*requests.values()] or [None]
        for request in checked:
            name = None if request is None else request.lora_name
            prompts = _canary_prompts([item["token_ids"] for item in job["items"] if item["adapter"] == name])
            yield {"canary": _canary(llm, request, prompts)}
    yield from generate(llm, items, requests, settings)


def lora_requests(folders: Mapping[str, str]) -> dict[str, LoRARequest]:
    """A LoRA request per adapter, by name.

    Raises:
        InputError: if a folder holds no adapter, or one that vLLM cannot serve.
    """
    from vllm.lora.request import LoRARequest

    for folder in folders.values():
        if served_config(folder) is not None:
            check_not_left_out()
    return {name: LoRARequest(name, number, folder) for number, (name, folder) in enumerate(folders.items(), start=1)}


def start(model: str, requests: Mapping[str, LoRARequest], settings: Mapping[str, Any]) -> LLM:
    """An engine with room for these adapters.

    Raises:
        InputError: if an adapter does not fit.
        RunError: if vLLM does not start.
    """
    from vllm import LLM

    lora: dict[str, Any] = {}
    if requests:
        folders = [request.lora_path for request in requests.values()]
        lora = {
            "enable_lora": True,
            "max_loras": min(len(requests), MAX_ADAPTERS_PER_BATCH),
            "max_cpu_loras": len(requests),
            "max_lora_rank": max(vllm_rank(largest_rank(adapter_config(folder)), folder) for folder in folders),
            "fully_sharded_loras": settings["tensor_parallel_size"] > 1,
        }
    try:
        return LLM(
            model,
            dtype=settings["dtype"],
            seed=settings["seed"],
            max_model_len=settings["max_model_len"],
            max_num_seqs=settings["max_num_seqs"],
            gpu_memory_utilization=settings["gpu_memory_utilization"] or memory_share(),
            tensor_parallel_size=settings["tensor_parallel_size"],
            enforce_eager=not torch.cuda.is_available(),
            trust_remote_code=trusts_code(),
            **lora,
        )
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
        raise RunError(f"vLLM does not start with {model}: {in_one_line(error)}") from error


def _canary(llm: LLM, request: LoRARequest | None, prompts: list[list[int]]) -> dict[str, Any]:
    """The canary's measurements, as JSON.

    Raises:
        CanaryError: if vLLM's answers would be wrong; not if the measurements are inconclusive.
    """
    canary = measure(llm, request, prompts=prompts)
    try:
        canary.check()
        unknown = None
    except CanaryUnknownError as error:
        unknown = str(error)
    return {
        "adapter": None if request is None else request.lora_name,
        "base_error": canary.base_error,
        "adapter_error": canary.adapter_error,
        "applied": canary.applied,
        "activation": canary.activation,
        "dtype": canary.dtype,
        "unknown": unknown,
    }


def _adapters_of(items: Sequence[Mapping[str, Any]]) -> set[str]:
    return {item["adapter"] for item in items if item["adapter"] is not None}


def _canary_prompts(prompts: Sequence[list[int]]) -> list[list[int]]:
    """A few prompts, spread evenly over the run's sets, cut to a length that a CPU processes in seconds."""
    step = max(1, len(prompts) // CANARY_PROMPTS)
    return [prompt[-CANARY_TOKENS:] for prompt in prompts[::step][:CANARY_PROMPTS]]


def generate(
    llm: LLM, items: Sequence[Mapping[str, Any]], requests: Mapping[str, LoRARequest], settings: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The answers to ``items`` as they finish; :func:`answers` without starting the engine."""
    from vllm import SamplingParams

    stop_tokens = {name: end_tokens(request.lora_path) for name, request in requests.items()}

    def sampling(item: Mapping[str, Any]) -> SamplingParams:
        return SamplingParams(
            max_tokens=item["max_new_tokens"],
            temperature=settings["temperature"],
            top_p=settings["top_p"],
            seed=sampling_seed(settings["seed"], item["token_ids"]),
            stop_token_ids=stop_tokens.get(item["adapter"], []),  # vLLM itself knows only the base's
            detokenize=False,  # the whole answer is decoded once, below, instead of token by token
        )

    ids = llm.enqueue(
        [{"prompt_token_ids": item["token_ids"]} for item in items],
        [sampling(item) for item in items],
        lora_request=[requests.get(item["adapter"]) for item in items],
        use_tqdm=False,
    )
    # Outputs carry the request's number. The ids that enqueue() returns add a random suffix to it.
    by_id = {request_id.partition("-")[0]: item for request_id, item in zip(ids, items, strict=True)}
    engine, tokenizer = llm.llm_engine, llm.get_tokenizer()
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                answer = output.outputs[0]
                yield {
                    "key": by_id[output.request_id]["key"],
                    "text": tokenizer.decode(answer.token_ids, skip_special_tokens=True),
                    "tokens": len(answer.token_ids),
                    "finish": answer.finish_reason,
                }
