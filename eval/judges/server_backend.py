"""Judges' logits by servers: ``vllm serve`` of the judge on as many machines as there are.

Queue, retries and pauses are the generation engine's (:mod:`monolora.eval.engines.server`); what is asked and what is
read is of judges. ShieldGemma is asked through ``/v1/completions`` for the log-probs of its two answers, a classifier
(``vllm serve MODEL --runner pooling``) through vLLM's ``/classify`` for its logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from monolora.eval.engines.client import Reply, Request
from monolora.eval.engines.server import replies
from monolora.eval.judges.base import Logits, Readable, padding_token, unpadded
from monolora.hub import load_config


class Question(NamedTuple):
    """How a server is asked.

    Attributes:
        path: as in :class:`monolora.eval.engines.client.Request`.
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
    pad = padding_token(settings["folder"], load_config(settings["folder"]))
    count = len(settings["labels"])

    def read(answer: Any) -> list[float] | str:
        logits = [float(logit) for logit in answer["data"][0]["probs"]]
        return logits if len(logits) == count else f"server: {len(logits)} logits for the judge's {count} labels"

    question = Question("/classify", lambda token_ids: {"input": [token_ids], "use_activation": False}, read)
    bare = [row._replace(calls=[unpadded(call, pad) for call in row.calls]) for row in rows]
    yield from _asked(settings, question, bare, done)


def _asked(
    settings: Mapping[str, Any], question: Question, rows: Sequence[Readable], done: set[str]
) -> Iterator[tuple[str, Logits | str]]:
    """The rows that are not done, each as soon as all of its calls are answered."""
    todo = [row for row in rows if row.key not in done]
    requests = [
        Request((row.key, number), question.path, question.body(token_ids) | {"model": settings["model"]})
        for row in todo
        for number, token_ids in enumerate(row.calls)
    ]
    waiting: dict[str, list[Any]] = {row.key: [None] * len(row.calls) for row in todo}
    with closing(replies(settings["endpoints"], requests, settings)) as found:
        for reply in found:
            key, number = reply.key
            waiting[key][number] = _read(reply, question)
            if None not in waiting[key]:
                calls = waiting.pop(key)
                yield key, next((each for each in calls if isinstance(each, str)), calls)


def _read(reply: Reply, question: Question) -> list[float] | str:
    """The logits of a call, or why there are none."""
    if reply.trouble:
        return reply.trouble
    try:
        return question.read(json.loads(reply.content))
    except (ValueError, LookupError, TypeError):
        return "server: the answer is not of the kind that was asked for"
