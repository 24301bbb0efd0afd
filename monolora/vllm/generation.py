"""Greedy answers of a base model by vLLM, to be asked for in a worker process (:mod:`monolora.workers`)."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from monolora.errors import RunError, in_one_line
from monolora.files import trusts_code

_SHARE = 0.8  # of the free memory


def is_installed() -> bool:
    """Whether vLLM is there; it is not imported."""
    return importlib.util.find_spec("vllm") is not None


def answers(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Answer prompts greedily.

    Args:
        job: ``model``, a folder; ``dtype``; ``prompts``, token ids of each; ``max_new_tokens``.

    Yields:
        ``{"ids": [...]}`` a prompt, in their order: the answer's tokens, its end token included.

    Raises:
        RunError: if vLLM does not start.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    share = _SHARE / 2
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        share = _SHARE * free / total  # the trainer's process has the base on this GPU too
    else:  # neither compilation nor a process of the engine's own pays for its start
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    try:
        llm = LLM(
            job["model"],
            dtype=job["dtype"],
            max_model_len=max(map(len, job["prompts"])) + job["max_new_tokens"],
            gpu_memory_utilization=share,
            enforce_eager=True,
            trust_remote_code=trusts_code(),
        )
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
        raise RunError(f"vLLM does not start with {job['model']}: {in_one_line(error)}") from error
    sampling = SamplingParams(temperature=0.0, max_tokens=job["max_new_tokens"], detokenize=False)
    prompts: list[Any] = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    for output in llm.generate(prompts, sampling, use_tqdm=False):
        yield {"ids": list(output.outputs[0].token_ids)}
