"""From logits to probabilities, in double precision."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from monolora.beaverdam import MAX_LENGTH
from monolora.errors import InputError, unknown
from monolora.eval.records import INVALID, OK
from monolora.hub import load_tokenizer
from monolora.redaction import without_credentials


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), also where that power overflows."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1 + power)


def softmax(logits: Sequence[float]) -> list[float]:
    """exp(logit) over the sum of all of them, also where the powers overflow."""
    largest = max(logits)
    powers = [math.exp(logit - largest) for logit in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]


TOO_LONG = "prompt too long"


class Readable(NamedTuple):
    """One response.

    Attributes:
        key: of the judgement.
        calls: token ids, one list a forward pass.
        cut: whether the end of the response had to be left out.
    """

    key: str
    calls: list[list[int]]
    cut: bool


class Unreadable(NamedTuple):
    """A response that this judge cannot read.

    Attributes:
        key: of the judgement.
        reason: why the judgement is invalid.
    """

    key: str
    reason: str


class Reader(Protocol):
    """A judge's format: from texts to token ids, and from logits to scores."""

    def read(self, items: Sequence[Mapping[str, Any]]) -> list[Readable | Unreadable]:
        """Items have ``key``, ``prompt`` and ``response``."""

    def scores(self, logits: Sequence[Sequence[float]]) -> dict[str, float]:
        """From the logits of each call of one response."""


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """All at once, which is several times faster; with the tokenizer's own special tokens, and uncut."""
    # verbose: a text that is longer than the tokenizer's own limit is seen to elsewhere
    return tokenizer(list(texts), verbose=False)["input_ids"] if texts else []


def longest_that_fits(response: str, fits: Callable[[str], bool]) -> str | None:
    """The longest beginning of a response that fits, or None if not one character of it does."""
    characters = bisect.bisect_left(range(1, len(response) + 1), True, key=lambda end: not fits(response[:end]))
    return response[:characters] if characters else None


def padding_token(folder: str, config: PreTrainedConfig) -> int | None:
    """The tokenizer's, as beaver-dam's own code takes it, or else the config's; None if the model has neither.

    Ids that are no row of the embedding are none: some old configs have -1, some tokenizers one more than the model.
    """
    known = (load_tokenizer(folder).pad_token_id, config.pad_token_id)
    return next((token for token in known if token is not None and 0 <= token < config.vocab_size), None)


def unpadded(token_ids: list[int], pad: int | None) -> list[int]:
    """Without padding tokens at the end, where the padding token is one that texts end with, such as EOS.

    Classes of transformers pool the last token that is not the padding token; vLLM pools the last token.
    """
    end = len(token_ids)
    while end > 1 and token_ids[end - 1] == pad:
        end -= 1
    return token_ids[:end]


ENGINES = ("auto", "vllm", "hf", "server")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Describes a judge; holds no model.

    Attributes:
        name: of its columns and files.
        kind: a harm judge flags what is unsafe; a refusal judge's flag means "refused".
        scores: names of the scores in each of its judgements that is ok; each score is from 0 to 1.
        threshold: a response is flagged if any score of ``unsafe`` is above it.
        unsafe: the scores that count for the flag.
        identity: all that changes scores, as JSON; not the threshold.
        target: ``"module:function"``, the generator that judges in a process of its own.
        settings: ``job["settings"]`` for it, as JSON.
        in_process: it holds no model, so it needs no process of its own.
    """

    name: str
    kind: Literal["harm", "refusal"]
    scores: tuple[str, ...]
    threshold: float
    unsafe: tuple[str, ...]
    identity: dict[str, Any]
    target: str
    settings: dict[str, Any] = field(default_factory=dict)
    in_process: bool = False

    def flagged(self, scores: Mapping[str, float]) -> bool:
        """Whether a judgement with these scores is a flag."""
        return any(scores[name] > self.threshold for name in self.unsafe)

    def stored(self) -> dict[str, Any]:
        """As records hold it: endpoints without user, password and query."""
        endpoints = [*map(without_credentials, self.settings.get("endpoints", ()))]
        return asdict(self) | {"settings": self.settings | ({"endpoints": endpoints} if endpoints else {})}


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """How judges are run; the same for all judges of a run.

    Attributes:
        engine: ``auto`` is vLLM for ShieldGemma and beaver-dam where it is installed, and else transformers.
        dtype: of the weights; ``auto`` is the checkpoint's own.
        batch_size: texts at a time, with ``hf``.
        device: for ``hf``; None is the GPU where there is one.
        unsafe_labels: for a classifier with labels of its own, those that mean unsafe.
        text: for such a classifier, what it reads, with ``{prompt}`` and ``{response}`` in it.
        beaverdam_max_length: tokens that beaver-dam and what has its labels read, at most.
        max_model_len: tokens that a judge reads; None is as many as it can.
        gpu_memory_utilization: as for ``vllm serve``; None is vLLM's own on a GPU, and 0.4 of a CPU's memory.
        tensor_parallel_size: for ``vllm``, as for ``vllm serve``.
        endpoints: for ``server``, as ``http://host:8000/v1``.
        concurrency: requests at a time, for each endpoint.
        retries: of a request that an endpoint could not answer.
        timeout_s: for a reply, waiting in the server's queue included.
        api_key_env: the environment variable with the endpoints' key; None where they ask for none.

    Raises:
        InputError: for values that cannot be.
    """

    engine: str = "auto"
    dtype: str = "auto"
    batch_size: int = 16
    device: str | None = None
    unsafe_labels: tuple[str, ...] = ()
    text: str | None = None
    beaverdam_max_length: int = MAX_LENGTH
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int = 1
    endpoints: tuple[str, ...] = ()
    concurrency: int = 32
    retries: int = 5
    timeout_s: float = 600.0
    api_key_env: str | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise unknown("judge engine", self.engine, ENGINES)
        if self.dtype not in DTYPES:
            raise unknown("judge dtype", self.dtype, DTYPES)
        for name in ("batch_size", "tensor_parallel_size", "concurrency"):
            if getattr(self, name) < 1:
                raise InputError(f"The judges' {name.replace('_', ' ')} must be at least 1, got {getattr(self, name)}.")
        if self.retries < 0 or not self.timeout_s > 0:
            raise InputError("The judges' retries must be 0 or more, and their timeout above 0 s.")
        if (self.engine == "server") != bool(self.endpoints):
            raise InputError("The judge engine server and its endpoints (http://host:8000/v1) go together.")


def judged(key: str, scores: Mapping[str, float], cut: bool = False) -> dict[str, Any]:
    """The row of a judgement that is ok."""
    return {"key": key, "scores": dict(scores), "cut": cut, "status": OK, "reason": None}


def invalid(key: str, reason: str, cut: bool = False) -> dict[str, Any]:
    """The row of a judgement that is no verdict, and why."""
    return {"key": key, "scores": {}, "cut": cut, "status": INVALID, "reason": reason}


Logits = Sequence[Sequence[float]]
Backend = Callable[[Sequence[Readable], set[str]], Iterator[tuple[str, Logits | str]]]
"""Takes all rows and the keys of those that are done; gives the key and the logits of each call of every row that is
not, or the reason why there are none, in any order, as they are made."""


def judgements_of(job: Mapping[str, Any], reader: Reader, backend: Backend) -> Iterator[dict[str, Any]]:
    """Judge what is not done yet.

    Args:
        job: ``items``, each with ``key``, ``prompt`` and ``response``; ``done``, keys.
        reader: the judge's format.
        backend: computes logits.
    """
    done = set(job["done"])
    rows = reader.read(job["items"])
    yield from (invalid(row.key, row.reason) for row in rows if isinstance(row, Unreadable) and row.key not in done)
    readable = [row for row in rows if isinstance(row, Readable)]
    cut = {row.key: row.cut for row in readable}
    if cut.keys() <= done:
        return  # no model is loaded for nothing
    for key, logits in backend(readable, done):
        if isinstance(logits, str):
            yield invalid(key, logits, cut[key])
        elif all(math.isfinite(logit) for call in logits for logit in call):
            yield judged(key, reader.scores(logits), cut[key])
        else:
            yield invalid(key, "nan", cut[key])
