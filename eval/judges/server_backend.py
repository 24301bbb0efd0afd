"""Judges' logits from servers: ``vllm serve`` of the judge on as many machines as there are.

Queue, retries and pauses are those of :mod:`monolora.eval.engines.server`. ShieldGemma is asked through
``/v1/completions`` for the log-probabilities of its two answers. A classifier (``vllm serve MODEL --runner pooling``)
is asked for its logits through ``/classify``, an endpoint of vLLM's own that has no counterpart in OpenAI's API.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from monolora.eval.engines.client import Reply, Request
from monolora.eval.engines.server import replies
from monolora.eval.judges.backend import EncodedResponse, Logits, padding_token, strip_padding
from monolora.hub import load_config


class RequestFormat(NamedTuple):
    """How logits are requested, and where they are in the reply.

    Attributes:
        path: as in :class:`monolora.eval.engines.client.Request`.
        body: the request for a call's token ids; the model's name is added.
        logits: the logits in the reply's JSON, or the reason why there are none.
    """

    path: str
    body: Callable[[list[int]], dict[str, Any]]
    logits: Callable[[Any], list[float] | str]


class ServerBackend:
    """A :class:`~monolora.eval.judges.backend.Backend`.

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
                pending[key][number] = _logits(reply, request_format)
                if None not in pending[key]:
                    calls = pending.pop(key)
                    # One call without logits is enough to make the judgement invalid.
                    yield key, next((call for call in calls if isinstance(call, str)), calls)


def _logits(reply: Reply, request_format: RequestFormat) -> list[float] | str:
    """The logits of a call, or the reason why there are none."""
    if reply.failure:
        return reply.failure
    try:
        return request_format.logits(json.loads(reply.content))
    except (ValueError, LookupError, TypeError):
        return "server: the answer is not of the kind that was asked for"
