"""What all judges that are models share: texts become token ids, an engine computes logits, logits become scores.

A judge brings its :class:`JudgeFormat`: what the model reads, and what its logits mean. The engine is a
:class:`~monolora.eval.judges.backend.Backend`. :func:`judge_responses` connects the two.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from transformers import PreTrainedTokenizerBase

from monolora.eval.judges.backend import Backend, EncodedResponse, Logits
from monolora.eval.judges.base import invalid_judgement, valid_judgement

TOO_LONG = "prompt too long"


class RejectedResponse(NamedTuple):
    """A response that the judge cannot read.

    Attributes:
        key: of the judgement.
        reason: why the judgement is invalid.
    """

    key: str
    reason: str


class JudgeFormat(Protocol):
    """What a judge reads, and what its logits mean."""

    def encode(self, items: Sequence[Mapping[str, Any]]) -> list[EncodedResponse | RejectedResponse]:
        """The token ids of items that have ``key``, ``prompt`` and ``response``."""

    def scores(self, logits: Logits) -> dict[str, float]:
        """The scores by name, from the logits of each call of a response."""


def make_backend(settings: Mapping[str, Any]) -> Backend:
    """The backend that ``settings["engine"]`` names. Only that engine is imported: vLLM takes seconds."""
    if settings["engine"] == "vllm":
        from monolora.eval.judges.vllm_backend import VllmBackend

        return VllmBackend(settings)
    if settings["engine"] == "server":
        from monolora.eval.judges.server_backend import ServerBackend

        return ServerBackend(settings)
    from monolora.eval.judges.hf_backend import HfBackend

    return HfBackend(settings)


def judge_responses(
    job: Mapping[str, Any],
    judge_format: JudgeFormat,
    compute_logits: Callable[[Sequence[EncodedResponse], set[str]], Iterator[tuple[str, Logits | str]]],
) -> Iterator[dict[str, Any]]:
    """Judge the responses that have no judgement yet.

    Args:
        job: ``items``, each with ``key``, ``prompt`` and ``response``; ``done``, the keys of existing judgements.
        judge_format: of the judge.
        compute_logits: a method of a :class:`Backend`.

    Yields:
        The row of a judgement for each response, in any order.
    """
    done = set(job["done"])
    encoded = judge_format.encode(job["items"])
    for response in encoded:
        if isinstance(response, RejectedResponse) and response.key not in done:
            yield invalid_judgement(response.key, response.reason)
    readable = [response for response in encoded if isinstance(response, EncodedResponse)]
    is_cut = {response.key: response.cut for response in readable}
    if is_cut.keys() <= done:
        return  # before the backend loads a model that would have nothing to do
    for key, logits in compute_logits(readable, done):
        if isinstance(logits, str):
            yield invalid_judgement(key, logits, is_cut[key])
        elif all(math.isfinite(logit) for call in logits for logit in call):
            yield valid_judgement(key, judge_format.scores(logits), is_cut[key])
        else:  # broken weights, or an overflow in half precision; a comparison with NaN would read "not flagged"
            yield invalid_judgement(key, "nan", is_cut[key])


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids with the tokenizer's own special tokens, not truncated. One call for all texts is much faster."""
    # verbose=False: the tokenizer would warn about texts beyond its own limit, which encode_truncated handles.
    return tokenizer(list(texts), verbose=False)["input_ids"] if texts else []


def encode_truncated(
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Mapping[str, Any]],
    texts: Callable[[str, str], list[str]],
    max_length: int,
) -> list[EncodedResponse | RejectedResponse]:
    """Token ids of each item's texts. A response that does not fit is cut at its end, equally in all of its texts.

    The response stands inside the text, so the text itself cannot be truncated: the question that follows the
    response would be lost.

    Args:
        tokenizer: of the judge.
        items: each with ``key``, ``prompt`` and ``response``.
        texts: what the judge reads of a prompt and a response; always the same number of texts, at least one.
        max_length: maximum number of tokens of a text.
    """

    def fits(calls: Sequence[list[int]]) -> bool:
        return max(map(len, calls)) <= max_length

    def cut(item: Mapping[str, Any]) -> EncodedResponse | RejectedResponse:
        response = item["response"]

        def calls(end: int) -> list[list[int]]:
            return token_ids(tokenizer, texts(item["prompt"], response[:end]))

        # By characters, because tokens may change where a text is cut; the longest beginning that fits, by bisection.
        end = bisect.bisect_left(range(1, len(response) + 1), True, key=lambda end: not fits(calls(end)))
        if end == 0:
            tokens = max(map(len, calls(0)))
            reason = f"{TOO_LONG}: with an empty response it has {tokens} tokens, and the judge reads {max_length}"
            return RejectedResponse(item["key"], reason)
        return EncodedResponse(item["key"], calls(end), cut=True)

    item_texts = [texts(item["prompt"], item["response"]) for item in items]
    ids = iter(token_ids(tokenizer, [text for per_item in item_texts for text in per_item]))
    encoded = [[next(ids) for _ in per_item] for per_item in item_texts]
    return [
        EncodedResponse(item["key"], calls, cut=False) if fits(calls) else cut(item)
        for item, calls in zip(items, encoded, strict=True)
    ]
