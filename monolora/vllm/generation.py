"""Greedy answers of a base model by vLLM, for a worker process (:mod:`monolora.workers`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from monolora.errors import RunError, in_one_line
from monolora.files import trusts_code


def prepare_environment() -> None:
    """Set the variables that vLLM reads when it is imported, unless the user has set them."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if not torch.cuda.is_available():
        # On a CPU neither compilation nor a process of the engine's own pays for its start.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def memory_share(free: float = 1.0) -> float:
    """The share of memory for vLLM: most of what is free on a GPU, less on a CPU, whose memory other programs use too.

    Args:
        free: the share of the GPU that no other process uses.
    """
    return 0.9 * free if torch.cuda.is_available() else 0.4


def answers(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Answer prompts greedily.

    Args:
        job: ``model``, a folder; ``dtype`` of its weights; ``prompts``, token ids of each; ``max_new_tokens``.

    Yields:
        ``{"ids": [...]}`` a prompt, in their order: the answer's tokens, with its end token where it was generated.

    Raises:
        RunError: if vLLM does not start.
    """
    prepare_environment()
    share = memory_share()
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()  # the caller's process has the base on this GPU too
        share = memory_share(free / total)
    from vllm import LLM, SamplingParams

    try:
        llm = LLM(
            job["model"],
            dtype=job["dtype"],
            max_model_len=max(map(len, job["prompts"])) + job["max_new_tokens"],
            gpu_memory_utilization=share,
            enforce_eager=not torch.cuda.is_available(),
            trust_remote_code=trusts_code(),
        )
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
        raise RunError(f"vLLM does not start with {job['model']}: {in_one_line(error)}") from error
    sampling = SamplingParams(temperature=0.0, max_tokens=job["max_new_tokens"], detokenize=False)
    prompts: list[Any] = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    for output in llm.generate(prompts, sampling, use_tqdm=False):
        yield {"ids": list(output.outputs[0].token_ids)}
