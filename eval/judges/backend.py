"""The interface between judges and the engines that run them: ``hf_backend``, ``vllm_backend``, ``server_backend``.

A backend knows an engine and nothing about judges: it takes token ids and gives logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from transformers import PreTrainedConfig

from monolora.hub import load_tokenizer

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
