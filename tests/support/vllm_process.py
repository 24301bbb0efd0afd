"""A vLLM engine in a process of its own, asked over a pipe: its memory, threads, warnings and plugins end with it.

Run as a program, this file is that process: it reads a request in JSON a line on stdin and answers on the real stdout.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch

from tests.support.forks import VLLM
from tests.support.limits import HANG_S

STDERR_LINES = 40
KV_CACHE_BYTES = 64 << 20
TOKENS = 8

ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # no thread is tied to a core: others use the machine too
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine is this one process
    "VLLM_NO_USAGE_STATS": "1",
}


class Adapter(NamedTuple):
    """A request's adapter, as vLLM's ``LoRARequest`` has it."""

    name: str
    number: int
    path: str
    load_inplace: bool = False


class Answer(NamedTuple):
    """What was generated, greedily.

    Attributes:
        prompt: token ids.
        tokens: those that follow.
        log_probs: of ``tokens``, by vLLM.
    """

    prompt: list[int]
    tokens: list[int]
    log_probs: list[float]


class RefusedError(RuntimeError):
    """What the engine raised for one request: the name of the class, and the message. It lives on."""


class Engine:
    """A vLLM ``LLM``; use it in a ``with`` statement.

    Args:
        model: a checkpoint, with or without a tokenizer. On a CPU the attention heads have 32, 64, 80, 96, 112 or 128
            dimensions (or more).
        stock: leave all plugins out, ours too.
        environment: variables for the process.
        settings: for ``LLM``.

    Raises:
        RuntimeError: if it does not start or dies; the message ends with the end of what it printed on stderr.
    """

    def __init__(
        self, model: Path | str, stock: bool = False, environment: dict[str, str] | None = None, **settings: Any
    ) -> None:
        variables = os.environ | ENVIRONMENT | (environment or {})
        for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_PLUGINS"):  # the first would go before KV_CACHE_BYTES
            variables.pop(name, None)
        if stock:
            variables["VLLM_PLUGINS"] = ""
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in `close`)
        self._process = VLLM.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=variables,
        )
        try:
            self._ask({"model": str(model), **settings})
        except BaseException:
            self.close()
            raise

    def generate(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[Adapter | None] | None = None, tokens: int = TOKENS
    ) -> list[Answer]:
        """All prompts at once, each through its adapter.

        Raises:
            RefusedError: what vLLM raised.
        """
        request = {
            "prompts": [list(prompt) for prompt in prompts],
            "adapters": [None] * len(prompts) if adapters is None else list(adapters),
            "tokens": tokens,
        }
        return [Answer(*answer) for answer in self._ask(request)]

    def score(self, prompts: Sequence[Sequence[int]], adapters: Sequence[Adapter | None]) -> list[Answer]:
        """What each prompt's own tokens are worth, all prompts at once: answers to their first tokens.

        Raises:
            RefusedError: what vLLM raised.
        """
        request = {"prompts": [list(prompt) for prompt in prompts], "adapters": list(adapters), "score": True}
        return [Answer(*answer) for answer in self._ask(request)]

    def canary(self, adapter: str | None, prompts: Sequence[Sequence[int]]) -> str:
        """What ``monolora.vllm.verify`` returns.

        Raises:
            RefusedError: what it raised.
        """
        return str(self._ask({"canary": adapter, "prompts": [list(prompt) for prompt in prompts]}))

    def add(self, adapter: Adapter) -> None:
        """``LLMEngine.add_lora``.

        Raises:
            RefusedError: what vLLM raised.
        """
        self._ask({"add": True, "adapters": [adapter]})

    def remove(self, number: int) -> None:
        """``LLMEngine.remove_lora``."""
        self._ask({"remove": number})

    def run(self, code: str) -> None:
        """Run Python in the engine's process: to break something there on purpose."""
        self._ask({"run": code})

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._dead() from None
        if not select.select([self._process.stdout], [], [], HANG_S)[0]:
            raise RuntimeError(f"the vLLM engine did not answer in {HANG_S} s:\n{self._tail()}")
        line = self._process.stdout.readline()
        if not line:
            raise self._dead()
        kind, answer = json.loads(line)
        if kind == "refused":
            raise RefusedError(answer)
        return answer

    def _dead(self) -> RuntimeError:
        status = self._process.wait(HANG_S)
        return RuntimeError(f"the vLLM engine ended with status {status}:\n{self._tail()}")

    def _tail(self) -> str:
        """The end of what the process has printed."""
        self._stderr.seek(0)
        return "\n".join(self._stderr.read().splitlines()[-STDERR_LINES:])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.terminate()
        self._process.wait(HANG_S)
        self._process.stdin.close()
        self._process.stdout.close()
        self._stderr.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@torch.no_grad()
def log_probs_of(model: Any, answers: Sequence[Answer]) -> list[list[float]]:
    """What transformers says of the same tokens, each given those before it."""
    found = []
    for prompt, tokens, _ in answers:
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist())
    return found


def largest_difference(answers: Sequence[Answer], model: Any) -> float:
    """Of any token's log-prob, between vLLM's answers and transformers."""
    return max(
        abs(ours - theirs)
        for answer, wanted in zip(answers, log_probs_of(model, answers), strict=True)
        for ours, theirs in zip(answer.log_probs, wanted, strict=True)
    )


def _start(settings: dict[str, Any]) -> Any:
    from vllm import LLM

    return LLM(
        settings.pop("model"),
        **{
            "dtype": "float32",
            "max_model_len": 64,
            "enforce_eager": True,
            "kv_cache_memory_bytes": KV_CACHE_BYTES,
            "skip_tokenizer_init": True,
        }
        | settings,
    )


def _lora_requests(request: dict[str, Any]) -> list[Any]:
    from vllm.lora.request import LoRARequest

    adapters = [None if given is None else Adapter(*given) for given in request["adapters"]]
    return [
        None if given is None else LoRARequest(given.name, given.number, given.path, load_inplace=given.load_inplace)
        for given in adapters
    ]


def _score(llm: Any, request: dict[str, Any]) -> list[Answer]:
    from vllm import SamplingParams

    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in request["prompts"]],
        SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=2, detokenize=False),
        lora_request=_lora_requests(request),
        use_tqdm=False,
    )
    return [
        Answer(
            prompt[:1],
            prompt[1:],
            [entry[token].logprob for entry, token in zip(logprobs[1:], prompt[1:], strict=True)],
        )
        for prompt, logprobs in ((output.prompt_token_ids, output.prompt_logprobs) for output in outputs)
    ]


def _generate(llm: Any, request: dict[str, Any]) -> list[Answer]:
    from vllm import SamplingParams

    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in request["prompts"]],
        SamplingParams(max_tokens=request["tokens"], temperature=0, ignore_eos=True, logprobs=0, detokenize=False),
        lora_request=_lora_requests(request),
        use_tqdm=False,
    )
    return [
        Answer(
            output.prompt_token_ids,
            list(output.outputs[0].token_ids),
            [
                entry[token].logprob
                for entry, token in zip(output.outputs[0].logprobs, output.outputs[0].token_ids, strict=True)
            ],
        )
        for output in outputs
    ]


def _answer(llm: Any, request: dict[str, Any]) -> Any:
    if "canary" in request:
        from monolora.vllm import verify

        return str(verify(llm, request["canary"], prompts=request["prompts"]))
    if "run" in request:
        exec(request["run"])
        return None
    if "add" in request:
        return llm.llm_engine.add_lora(*_lora_requests(request))
    if "remove" in request:
        return llm.llm_engine.remove_lora(request["remove"])
    return _score(llm, request) if "score" in request else _generate(llm, request)


def main() -> None:
    """Answer until stdin ends. Libraries print on stdout too, so only answers get the real one."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    llm: Any = _start(json.loads(sys.stdin.readline()))
    print(json.dumps(["started", None]), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = ["answer", _answer(llm, json.loads(line))]
        except (ValueError, RuntimeError) as error:
            answer = ["refused", f"{type(error).__name__}: {error}"]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
