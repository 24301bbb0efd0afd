"""The path of all judges that are models: texts become token ids, an engine computes logits, logits become scores.

A judge brings its :class:`JudgeFormat`: what the model reads, and what its logits mean. The engine is a
:class:`~monolora.eval.judges.backend.Backend`. :func:`judge_responses` connects the two.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from monolora.errors import InputError
from monolora.eval.judges.backends import Backend, EncodedResponse, Logits
from monolora.eval.judges.base import JudgeOptions, invalid_judgement, valid_judgement
from monolora.hub import load_config, resolve_model
from monolora.run_record import fingerprint_files

# The checkpoint of a judge that is a model, examined without loading its weights.


CLASSIFIER = "ForSequenceClassification"
_TOKENIZER_FILES = ("tokenizer.json", ".model", "vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json")
# Options that only one engine reads.
_ENGINE_OPTIONS = {"server": ("concurrency", "retries", "timeout_s", "api_key_env"), "vllm": ("tensor_parallel_size",)}


class Checkpoint(NamedTuple):
    """A model folder.

    Attributes:
        name: as the user gave it.
        folder: that holds it.
        config: the model's config.
    """

    name: str
    folder: str
    config: PreTrainedConfig

    @classmethod
    def find(cls, name: str, architecture: str, options: JudgeOptions) -> Checkpoint:
        """The checkpoint of a judge.

        Args:
            name: a path or a hub id.
            architecture: the required end of its class's name, such as ``ForSequenceClassification``.
            options: of the run; with the server engine the folder needs no weights.

        Raises:
            InputError: if it is unavailable, of another architecture, or its weights are not safetensors.
        """
        folder = resolve_model(name)
        config = load_config(folder)
        model_class = (config.architectures or ["unknown"])[0]
        if not model_class.endswith(architecture):
            raise InputError(f"{name} is of the class {model_class}; this judge has to be a …{architecture}.")
        if options.engine != "server" and not list(Path(folder).glob("*.safetensors")):
            raise InputError(
                f"{folder} holds no *.safetensors, and other weights are not loaded. Convert them once: load {name} "
                "with transformers, save_pretrained(FOLDER), and give that folder."
            )
        return cls(name, folder, config)

    @property
    def labels(self) -> list[str]:
        """A classifier's labels, in the order of its logits."""
        return [label for _, label in sorted((self.config.id2label or {}).items())]

    def max_length(self, options: JudgeOptions) -> float:
        """The maximum number of tokens by model and options; infinite if neither states one."""
        positions = self.config.to_dict().get("max_position_embeddings", math.inf)
        return min(positions, options.max_model_len or math.inf)

    def worker_settings(self, options: JudgeOptions, engine: str, max_length: int) -> dict[str, Any]:
        """The settings that the worker process of every model judge needs."""
        return {
            "model": self.name,
            "folder": self.folder,
            "engine": engine,
            "dtype": _dtype(self.config, options),
            "batch_size": options.batch_size,
            "device": options.device,
            "max_length": max_length,
            "gpu_memory_utilization": options.gpu_memory_utilization,
            "endpoints": list(options.endpoints),
        } | {name: getattr(options, name) for name in _ENGINE_OPTIONS.get(engine, ())}

    def identity(self, settings: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Everything that a judge's scores depend on: weights, config, tokenizer, engine, dtype, and ``more``.

        A hub id is part of it. The path of a folder is not, because a folder may be moved.
        """
        return {
            "model": None if Path(self.name).exists() else self.name,
            "revision": _revision(self.folder),
            "weights": fingerprint_files(self.folder),
            "config": fingerprint_files(self.folder, "config.json"),
            "tokenizer": [fingerprint_files(self.folder, suffix) for suffix in _TOKENIZER_FILES],
            "engine": settings["engine"],
            "dtype": settings["dtype"],
            "max_length": settings["max_length"],
            **more,
        }


def _revision(folder: str) -> str | None:
    """The commit, if the folder is a snapshot in the hub's cache."""
    path = Path(folder)
    return path.name if path.parent.name == "snapshots" else None


def _dtype(config: PreTrainedConfig, options: JudgeOptions) -> str:
    """The dtype's name, never ``auto``: vLLM and transformers disagree on what that means."""
    if options.dtype != "auto":
        return options.dtype
    return str(config.dtype or torch.float32).removeprefix("torch.")


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
    """The input format of a judge, and the meaning of its logits."""

    def encode(self, items: Sequence[Mapping[str, Any]]) -> list[EncodedResponse | RejectedResponse]:
        """The token ids of items that have ``key``, ``prompt`` and ``response``."""

    def scores(self, logits: Logits) -> dict[str, float]:
        """The scores by name, from the logits of each call of a response."""


def make_backend(settings: Mapping[str, Any]) -> Backend:
    """The backend that ``settings["engine"]`` names. Only that engine is imported: vLLM takes seconds."""
    if settings["engine"] == "vllm":
        from monolora.eval.judges.backends import VllmBackend

        return VllmBackend(settings)
    if settings["engine"] == "server":
        from monolora.eval.judges.backends import ServerBackend

        return ServerBackend(settings)
    from monolora.eval.judges.backends import HfBackend

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
