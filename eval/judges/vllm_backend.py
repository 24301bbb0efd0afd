"""Judges' logits by vLLM, offline. All calls are handed over at once; rows are given back as they finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from monolora.errors import RunError, in_one_line
from monolora.eval.engines.vllm import memory_share, prepare_environment
from monolora.eval.judges.base import Logits, Readable, padding_token, unpadded
from monolora.hub import load_config
from monolora.remote_code import trusts_code

if TYPE_CHECKING:
    from vllm import LLM


def next_token_logits(
    settings: Mapping[str, Any], rows: Sequence[Readable], done: set[str]
) -> Iterator[tuple[str, Logits]]:
    """Log-probs of ``settings["answers"]`` after each call: their logits, up to a constant.

    They are those of the raw logits (vLLM's ``raw_logprobs``, before temperature and penalties), of exactly these
    tokens, whether or not they are among the likeliest.
    """
    llm = _start(settings, settings["max_length"] + 1)  # one token is generated
    from vllm import SamplingParams

    answers = settings["answers"]
    params = SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=answers, detokenize=False)

    def logits(output: Any) -> list[float]:
        (log_probs,) = output.outputs[0].logprobs
        return [log_probs[token].logprob for token in answers]

    yield from _finished(llm, rows, done, params, logits)


def classifier_logits(
    settings: Mapping[str, Any], rows: Sequence[Readable], done: set[str]
) -> Iterator[tuple[str, Logits]]:
    """Logits of all labels, before vLLM's activation (which is a softmax where the config names no problem type)."""
    pad = padding_token(settings["folder"], load_config(settings["folder"]))
    llm = _start(settings, settings["max_length"], runner="pooling", convert="classify")
    from vllm import PoolingParams

    bare = [row._replace(calls=[unpadded(call, pad) for call in row.calls]) for row in rows]
    params = PoolingParams(task="classify", use_activation=False)
    yield from _finished(llm, bare, done, params, lambda output: output.outputs.data.double().tolist())


def _start(settings: Mapping[str, Any], max_model_len: int, **kind: str) -> LLM:
    """An engine for the judge.

    Raises:
        RunError: if vLLM does not start.
    """
    prepare_environment(batch_invariant=False)
    from vllm import LLM

    try:
        return LLM(
            settings["folder"],
            dtype=settings["dtype"],
            max_model_len=max_model_len,
            gpu_memory_utilization=settings["gpu_memory_utilization"] or memory_share(),
            tensor_parallel_size=settings["tensor_parallel_size"],
            enforce_eager=not torch.cuda.is_available(),
            skip_tokenizer_init=True,
            trust_remote_code=trusts_code(),
            **kind,
        )
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
        raise RunError(f"vLLM does not start with {settings['folder']}: {in_one_line(error)}") from error


def _finished(
    llm: LLM, rows: Sequence[Readable], done: set[str], params: Any, logits: Callable[[Any], list[float]]
) -> Iterator[tuple[str, Logits]]:
    """The rows that are not done, each as soon as all of its calls are.

    The calls of a row are handed over side by side: what they have in common is then computed once (prefix cache), also
    by requests of the same step.
    """
    from vllm.inputs import tokens_input

    engine = llm.llm_engine
    waiting = {row.key: dict[int, list[float]]() for row in rows if row.key not in done}
    calls: dict[str, tuple[Readable, int]] = {}
    for row in rows:
        for number, token_ids in enumerate(row.calls if row.key in waiting else []):
            name = str(len(calls))
            calls[name] = row, number
            engine.add_request(name, tokens_input(token_ids), params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            row, number = calls[output.request_id]
            waiting[row.key][number] = logits(output)
            if len(waiting[row.key]) == len(row.calls):
                found = waiting.pop(row.key)
                yield row.key, [found[call] for call in range(len(row.calls))]
