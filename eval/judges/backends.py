"""Backends that run a judge's model: transformers, vLLM, or a server. From token ids to logits, for any judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import torch
from transformers import PreTrainedConfig

from monolora.endpoint import Reply, Request
from monolora.errors import InputError, RunError, in_one_line
from monolora.eval.engines.hf import fixed_batches
from monolora.eval.engines.server import replies
from monolora.files import trusts_code
from monolora.hub import load_causal_lm, load_classifier, load_config, load_tokenizer
from monolora.inference import evaluating, padded
from monolora.units import input_device
from monolora.vllm.generation import memory_share, prepare_environment

if TYPE_CHECKING:
    from vllm import LLM


Logits = Sequence[Sequence[float]]  # of a response: a list per call


class EncodedResponse(NamedTuple):
    """A response as its judge reads it.

    Attributes:
        key: of the judgement.
        calls: token ids of each forward pass that the judgement takes.
        cut: whether the end of the response was left out.
    """

    key: str
    calls: list[list[int]]
    cut: bool


class Backend(Protocol):
    """Computes logits with one engine, constructed from a judge's settings; nothing is loaded before the first call.

    Both methods take all responses, and the keys of those that have a judgement already: batches may depend on all of
    them. They yield, as soon as a response is finished and in any order, its key and the logits of each of its calls,
    or the reason why there are none.
    """

    def next_token_logits(
        self, responses: Sequence[EncodedResponse], done: set[str]
    ) -> Iterator[tuple[str, Logits | str]]:
        """Logits of the tokens ``settings["answers"]`` after each call, up to a constant that they share."""

    def classifier_logits(
        self, responses: Sequence[EncodedResponse], done: set[str]
    ) -> Iterator[tuple[str, Logits | str]]:
        """Logits of a sequence classifier, one per label, before any activation."""


def padding_token(folder: str, config: PreTrainedConfig) -> int | None:
    """The tokenizer's padding token, which beaver-dam's own code uses, else the config's, else None.

    Ids outside the embedding do not count: some old configs have -1, some tokenizers have one token more than the
    model.
    """
    candidates = (load_tokenizer(folder).pad_token_id, config.pad_token_id)
    return next((token for token in candidates if token is not None and 0 <= token < config.vocab_size), None)


def strip_padding(token_ids: list[int], pad: int | None) -> list[int]:
    """Token ids without padding tokens at the end: a text ends with one where EOS serves as the padding token.

    transformers' classifiers pool the last token that is not the padding token, vLLM pools the last token. Without
    the trailing tokens both pool the same one.
    """
    end = len(token_ids)
    while end > 1 and token_ids[end - 1] == pad:
        end -= 1
    return token_ids[:end]


# Transformers, in batches that do not depend on what is judged already. Shapes: B calls of a batch, T tokens,
# V vocabulary, L labels, K answers.


_Forward = Callable[[Sequence[list[int]]], torch.Tensor]


class HfBackend:
    """A :class:`~monolora.eval.judges.backends.Backend`.

    Args:
        settings: ``folder``, ``dtype``, ``device``, ``batch_size``, and ``answers`` for next-token logits.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    def next_token_logits(self, responses: Sequence[EncodedResponse], done: set[str]) -> Iterator[tuple[str, Logits]]:
        """Logits of the answers, ``(B, K)`` a batch.

        Calls are padded on the left, so that all end at the last position and only its V logits are computed.
        """
        model = load_causal_lm(self._settings["folder"], **self._load_options())
        answers, device = self._settings["answers"], input_device(model)

        def forward(calls: Sequence[list[int]]) -> torch.Tensor:
            # Any token will do as padding: it is masked.
            ids_BT, mask_BT = (tensor.to(device) for tensor in padded(calls, 0, left=True))
            positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)  # each call's first token is at position 0
            output = model(ids_BT, attention_mask=mask_BT, position_ids=positions_BT, logits_to_keep=1, use_cache=False)
            return cast(torch.Tensor, output.logits[:, -1, answers])

        with evaluating(model):
            yield from _in_batches(responses, done, self._settings["batch_size"], forward)

    def classifier_logits(self, responses: Sequence[EncodedResponse], done: set[str]) -> Iterator[tuple[str, Logits]]:
        """Logits of the labels, ``(B, L)`` a batch, at the position that the model's class pools.

        Decoders pool the last token that is not padding, encoders the first token; with padding on the right, both
        find it. Without a padding token the class accepts only batches of one call.
        """
        model = self._load_classifier().eval()
        pad = padding_token(self._settings["folder"], model.config)
        model.config.pad_token_id = pad
        device = input_device(model)

        def forward(calls: Sequence[list[int]]) -> torch.Tensor:
            stripped = [strip_padding(call, pad) for call in calls]
            ids_BT, mask_BT = (tensor.to(device) for tensor in padded(stripped, pad or 0, left=False))
            return cast(torch.Tensor, model(ids_BT, attention_mask=mask_BT).logits)

        yield from _in_batches(responses, done, self._settings["batch_size"] if pad is not None else 1, forward)

    def _load_classifier(self) -> Any:
        """The classifier.

        Raises:
            InputError: if weights are damaged or missing: transformers would initialize a missing head at random.
        """
        folder = self._settings["folder"]
        model, loading = load_classifier(folder, ignore_mismatched_sizes=True, **self._load_options())
        missing = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
        if missing:
            raise InputError(
                f"The weights in {folder} lack {missing[0]} ({len(missing)} such), or have it in another shape than "
                "its config.json says. Copy the model again."
            )
        return model

    def _load_options(self) -> dict[str, Any]:
        """Options of ``from_pretrained``: dtype, device, and an attention kernel that computes what the model means.

        Gemma 2 caps its attention logits. transformers' default kernel silently omits the cap; the eager one has it.
        """
        options = {"dtype": self._settings["dtype"]}
        if self._settings["device"] is not None:
            options["device_map"] = self._settings["device"]
        elif torch.cuda.is_available():
            options["device_map"] = "auto"
        if load_config(self._settings["folder"]).to_dict().get("attn_logit_softcapping") is not None:
            options["attn_implementation"] = "eager"
        return options


def _in_batches(
    responses: Sequence[EncodedResponse], done: set[str], batch_size: int, forward: _Forward
) -> Iterator[tuple[str, Logits]]:
    """The logits of each response. Its calls stay in one batch; ``batch_size`` counts calls."""
    responses_per_batch = max(1, batch_size // len(responses[0].calls))
    lengths = {response.key: max(map(len, response.calls)) for response in responses}
    rows = [response._asdict() for response in responses]
    for batch in fixed_batches(rows, done, responses_per_batch, lambda row: lengths[row["key"]]):
        logits = iter(_logits(forward, [call for row in batch.rows for call in row["calls"]]))
        for row in batch.rows:
            row_logits = [next(logits) for _ in row["calls"]]
            if row["key"] in batch.wanted:
                yield row["key"], row_logits


# Servers. ShieldGemma is asked through `/v1/completions` for the log-probabilities of its two answers; a classifier
# through `/classify`, an endpoint of vLLM's own (`vllm serve MODEL --runner pooling`).


@torch.inference_mode()
def _logits(forward: _Forward, calls: Sequence[list[int]]) -> list[list[float]]:
    try:
        return cast("list[list[float]]", forward(calls).double().tolist())
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"The device has no memory for {len(calls)} texts at once. Lower the judges' batch size."
        ) from error


class RequestFormat(NamedTuple):
    """How logits are requested, and where they are in the reply.

    Attributes:
        path: as in :class:`monolora.endpoint.Request`.
        body: the request for a call's token ids; the model's name is added.
        logits: the logits in the reply's JSON, or the reason why there are none.
    """

    path: str
    body: Callable[[list[int]], dict[str, Any]]
    logits: Callable[[Any], list[float] | str]


class ServerBackend:
    """A :class:`~monolora.eval.judges.backends.Backend`.

    Args:
        settings: ``model`` (the served name), ``folder``, ``endpoints``, those of
            :func:`monolora.eval.engines.server.replies`, and ``answers`` or ``labels``.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    def next_token_logits(
        self, responses: Sequence[EncodedResponse], done: set[str]
    ) -> Iterator[tuple[str, Logits | str]]:
        """Log-probabilities of the answers, which are their logits up to a constant."""
        answers = self._settings["answers"]
        # logprob_token_ids is vLLM's: exactly these tokens, whether or not they are among the most likely.
        # Names are ids ("token_id:42"), as the text of a token is not unique.
        parameters = {
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": len(answers),
            "logprob_token_ids": answers,
            "return_tokens_as_token_ids": True,
        }
        names = [f"token_id:{token}" for token in answers]

        def logits(reply: Any) -> list[float] | str:
            log_probs = reply["choices"][0]["logprobs"]["top_logprobs"][0]
            missing = [name for name in names if name not in log_probs]
            if missing:  # a server that ignores logprob_token_ids
                return f"no such token: the answer has no log-prob of {missing[0]}"
            return [float(log_probs[name]) for name in names]

        request_format = RequestFormat("completions", lambda token_ids: parameters | {"prompt": token_ids}, logits)
        yield from self._request(request_format, responses, done)

    def classifier_logits(
        self, responses: Sequence[EncodedResponse], done: set[str]
    ) -> Iterator[tuple[str, Logits | str]]:
        """Logits of all labels. vLLM calls them ``probs`` also with its activation off."""
        pad = padding_token(self._settings["folder"], load_config(self._settings["folder"]))
        labels = len(self._settings["labels"])

        def body(token_ids: list[int]) -> dict[str, Any]:
            return {"input": [strip_padding(token_ids, pad)], "use_activation": False}

        def logits(reply: Any) -> list[float] | str:
            values = [float(logit) for logit in reply["data"][0]["probs"]]
            return values if len(values) == labels else f"server: {len(values)} logits for the judge's {labels} labels"

        yield from self._request(RequestFormat("/classify", body, logits), responses, done)

    def _request(
        self, request_format: RequestFormat, responses: Sequence[EncodedResponse], done: set[str]
    ) -> Iterator[tuple[str, Logits | str]]:
        """The responses that are not done, each as soon as all of its calls are answered."""
        todo = [response for response in responses if response.key not in done]
        requests = [
            Request(
                (response.key, number),
                request_format.path,
                request_format.body(token_ids) | {"model": self._settings["model"]},
            )
            for response in todo
            for number, token_ids in enumerate(response.calls)
        ]
        pending: dict[str, list[Any]] = {response.key: [None] * len(response.calls) for response in todo}
        with closing(replies(self._settings["endpoints"], requests, self._settings)) as server_replies:
            for reply in server_replies:
                key, number = reply.key
                pending[key][number] = _server_logits(reply, request_format)
                if None not in pending[key]:
                    calls = pending.pop(key)
                    # One call without logits is enough to make the judgement invalid.
                    yield key, next((call for call in calls if isinstance(call, str)), calls)


def _server_logits(reply: Reply, request_format: RequestFormat) -> list[float] | str:
    """The logits of a call, or the reason why there are none."""
    if reply.failure:
        return reply.failure
    try:
        return request_format.logits(json.loads(reply.content))
    except (ValueError, LookupError, TypeError):
        return "server: the answer is not of the kind that was asked for"


# vLLM, offline: all calls are enqueued at once, responses are yielded as they finish.


class VllmBackend:
    """A :class:`~monolora.eval.judges.backends.Backend`.

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
        prepare_environment()
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
