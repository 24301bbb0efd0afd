"""Judges' logits from vLLM, offline. All calls are enqueued at once; responses are yielded as they finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from monolora.errors import RunError, in_one_line
from monolora.eval.engines.vllm import memory_share, prepare_environment
from monolora.eval.judges.backend import EncodedResponse, Logits, padding_token, strip_padding
from monolora.hub import load_config
from monolora.remote_code import trusts_code

if TYPE_CHECKING:
    from vllm import LLM


class VllmBackend:
    """A :class:`~monolora.eval.judges.backend.Backend`.

    Args:
        settings: ``folder``, ``dtype``, ``max_length``, ``gpu_memory_utilization``, ``tensor_parallel_size``, and
            ``answers`` for next-token logits.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    def next_token_logits(self, responses: Sequence[EncodedResponse], done: set[str]) -> Iterator[tuple[str, Logits]]:
        """Log-probabilities of the answers, which are their logits up to a constant.

        vLLM takes them from the raw logits (``raw_logprobs``, before temperature and penalties), of exactly these
        tokens, whether or not they are among the most likely.
        """
        llm = self._start(self._settings["max_length"] + 1)  # one token is generated
        from vllm import SamplingParams

        answers = self._settings["answers"]
        params = SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=answers, detokenize=False)

        def logits(output: Any) -> list[float]:
            (log_probs,) = output.outputs[0].logprobs
            return [log_probs[token].logprob for token in answers]

        yield from _finished(llm, responses, done, params, logits)

    def classifier_logits(self, responses: Sequence[EncodedResponse], done: set[str]) -> Iterator[tuple[str, Logits]]:
        """Logits of all labels, without vLLM's activation: a softmax where the config names no problem type."""
        pad = padding_token(self._settings["folder"], load_config(self._settings["folder"]))
        llm = self._start(self._settings["max_length"], runner="pooling", convert="classify")
        from vllm import PoolingParams

        stripped = [
            response._replace(calls=[strip_padding(call, pad) for call in response.calls]) for response in responses
        ]
        params = PoolingParams(task="classify", use_activation=False)
        yield from _finished(llm, stripped, done, params, lambda output: output.outputs.data.double().tolist())

    def _start(self, max_model_len: int, **runner: str) -> LLM:
        """An engine for the judge.

        Raises:
            RunError: if vLLM does not start.
        """
        prepare_environment(batch_invariant=False)
        from vllm import LLM

        settings = self._settings
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
                **runner,
            )
        except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
            raise RunError(f"vLLM does not start with {settings['folder']}: {in_one_line(error)}") from error


def _finished(
    llm: LLM,
    responses: Sequence[EncodedResponse],
    done: set[str],
    params: Any,
    logits: Callable[[Any], list[float]],
) -> Iterator[tuple[str, Logits]]:
    """The responses that are not done, each as soon as all of its calls are finished.

    The calls of a response are enqueued one after the other: vLLM's prefix cache then computes their common beginning
    once, even for requests of the same step.
    """
    from vllm.inputs import tokens_input

    engine = llm.llm_engine
    pending = {response.key: dict[int, list[float]]() for response in responses if response.key not in done}
    requests: dict[str, tuple[EncodedResponse, int]] = {}
    for response in responses:
        for number, token_ids in enumerate(response.calls if response.key in pending else []):
            request_id = str(len(requests))
            requests[request_id] = response, number
            engine.add_request(request_id, tokens_input(token_ids), params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            response, number = requests[output.request_id]
            pending[response.key][number] = logits(output)
            if len(pending[response.key]) == len(response.calls):
                calls = pending.pop(response.key)
                yield response.key, [calls[number] for number in range(len(response.calls))]
