"""Judges' logits by servers: ``vllm serve`` of the judge on as many machines as there are.

Queue, retries and pauses are the generation engine's (:mod:`monolora.eval.engines.server`); what is asked and what is
read is of judges. ShieldGemma is asked through ``/v1/completions`` for the log-probs of its two answers, a classifier
(``vllm serve MODEL --runner pooling``) through vLLM's ``/classify`` for its logits.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import httpx2
import openai
from transformers import AutoConfig

from monolora.eval.engines import client, server
from monolora.eval.engines.client import Endpoint, UnavailableError
from monolora.eval.judges.padding import padding_token, unpadded
from monolora.eval.judges.reading import Readable
from monolora.eval.judges.running import Logits

RETRIES = 5
TIMEOUT_S = 600.0  # of one answer, waiting in the server's queue included
_MODEL = "judge"


class Question(NamedTuple):
    """How a server is asked.

    Attributes:
        path: of the endpoint; what begins with ``/`` is beside ``/v1``, not under it.
        body: the request for token ids; the model's name is added.
        read: the logits in the answer's JSON, or why there are none.
    """

    path: str
    body: Callable[[list[int]], dict[str, Any]]
    read: Callable[[Any], list[float] | str]


def next_token_logits(
    settings: Mapping[str, Any], rows: Sequence[Readable], done: set[str]
) -> Iterator[tuple[str, Logits | str]]:
    """Log-probs of ``settings["answers"]`` after each call: their logits, up to a constant."""
    answers = settings["answers"]
    asked = {
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": len(answers),
        "logprob_token_ids": answers,
        "return_tokens_as_token_ids": True,
    }

    def read(answer: Any) -> list[float] | str:
        log_probs = answer["choices"][0]["logprobs"]["top_logprobs"][0]
        names = [f"token_id:{token}" for token in answers]
        absent = [name for name in names if name not in log_probs]
        if absent:
            return f"no such token: the answer has no log-prob of {absent[0]}"
        return [float(log_probs[name]) for name in names]

    question = Question("completions", lambda token_ids: asked | {"prompt": token_ids}, read)
    yield from _asked(settings, question, rows, done)


def classifier_logits(
    settings: Mapping[str, Any], rows: Sequence[Readable], done: set[str]
) -> Iterator[tuple[str, Logits | str]]:
    """Logits of all labels, before any activation."""
    pad = padding_token(settings["folder"], AutoConfig.from_pretrained(settings["folder"]))
    count = len(settings["labels"])

    def read(answer: Any) -> list[float] | str:
        logits = [float(logit) for logit in answer["data"][0]["probs"]]
        return logits if len(logits) == count else f"server: {len(logits)} logits for the judge's {count} labels"

    question = Question("/classify", lambda token_ids: {"input": [token_ids], "use_activation": False}, read)
    bare = [row._replace(calls=[unpadded(call, pad) for call in row.calls]) for row in rows]
    yield from _asked(settings, question, bare, done)


class JudgeEndpoint(Endpoint):
    """An endpoint that is asked for logits.

    Args:
        url: its base URL, as ``http://host:8000/v1``.
        settings: of the client.
        question: what it is asked.
    """

    def __init__(self, url: str, settings: Mapping[str, Any], question: Question) -> None:
        super().__init__(url, settings, server._key(None))
        self._question = question

    async def answer(self, item: Mapping[str, Any], served: str) -> dict[str, Any]:
        """The logits for the token ids of ``item``, or the reason why there are none.

        Raises:
            UnavailableError: if another endpoint, or this one later, may well answer.
        """
        try:
            content = await self._asked(item["token_ids"], served)
        except openai.APITimeoutError as error:
            if isinstance(error.__cause__, httpx2.ConnectTimeout):
                raise UnavailableError("no connection in time") from error
            return {"key": item["key"], "logits": f"server: no answer within {TIMEOUT_S:g} s."}
        except openai.APIStatusError as error:
            if error.status_code in client._NOT_THE_PROMPT:
                raise UnavailableError(client._said(error)) from error
            return {"key": item["key"], "logits": f"server: {client._said(error)}"}
        except openai.APIError as error:
            raise UnavailableError(client._said(error)) from error
        try:
            return {"key": item["key"], "logits": self._question.read(json.loads(content))}
        except (ValueError, LookupError, TypeError):
            return {"key": item["key"], "logits": "server: the answer is not of the kind that was asked for"}

    async def _asked(self, token_ids: list[int], served: str) -> bytes:
        path = self._question.path
        whole = self.url.removesuffix("/v1") + path if path.startswith("/") else path
        body = self._question.body(token_ids) | {"model": served}
        return (await self._client.post(whole, body=body, cast_to=httpx2.Response)).content


def _asked(
    settings: Mapping[str, Any], question: Question, rows: Sequence[Readable], done: set[str]
) -> Iterator[tuple[str, Logits | str]]:
    """The rows that are not done, each as soon as all of its calls are answered."""
    waiting = {row.key: [None] * len(row.calls) for row in rows if row.key not in done}
    items = [
        {"key": (row.key, number), "token_ids": token_ids, "model": _MODEL}
        for row in rows
        if row.key in waiting
        for number, token_ids in enumerate(row.calls)
    ]
    for answer in _answers(settings, question, items):
        key, number = answer["key"]
        waiting[key][number] = answer["logits"]
        if None not in waiting[key]:
            calls = waiting.pop(key)
            yield key, next((each for each in calls if isinstance(each, str)), calls)


def _answers(
    settings: Mapping[str, Any], question: Question, items: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    told = {"concurrency": settings["batch_size"], "retries": RETRIES, "timeout_s": TIMEOUT_S}
    job = {"models": {_MODEL: settings["model"]}, "settings": told}
    endpoints = [JudgeEndpoint(url, told, question) for url in server._urls(settings["endpoints"])]
    with asyncio.Runner() as runner:
        asked = server._asked(endpoints, job, items)
        try:
            while (answer := runner.run(server._next(asked))) is not None:
                yield answer
        finally:
            runner.run(asked.aclose())
