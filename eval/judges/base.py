"""Judges, their configuration, and the judgements that they yield. No model is involved here."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from monolora.beaverdam import MAX_LENGTH
from monolora.errors import InputError, unknown
from monolora.eval.settings import JUDGE_DTYPES, JUDGE_ENGINES
from monolora.eval.store import INVALID, OK
from monolora.redaction import without_credentials


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Describes a judge; holds no model. ``run.json`` stores these fields under these names.

    Attributes:
        name: names the judge's columns and log.
        kind: a harm judge flags unsafe responses; a refusal judge flags refusals.
        scores: names of the scores of a valid judgement, each score in [0, 1].
        threshold: a response is flagged if any score in ``unsafe`` exceeds it.
        unsafe: the scores that count for the flag.
        identity: everything that the scores depend on, as JSON; not the threshold.
        target: ``"module:function"``, the generator function that judges, called in a worker process.
        settings: the ``settings`` of that function's job, as JSON.
        in_process: whether the judge holds no model and so needs no worker process.
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
        """Whether a response with these scores is flagged."""
        return any(scores[name] > self.threshold for name in self.unsafe)

    def as_record(self) -> dict[str, Any]:
        """The judge as ``run.json`` stores it: endpoints without user, password and query."""
        endpoints = [without_credentials(url) for url in self.settings.get("endpoints", ())]
        return asdict(self) | {"settings": self.settings | ({"endpoints": endpoints} if endpoints else {})}


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """How the judges of a run are executed; the same options apply to all of them.

    Attributes:
        engine: ``auto`` is vLLM for ShieldGemma and beaver-dam if it is installed, otherwise transformers.
        dtype: of the weights; ``auto`` is the checkpoint's own.
        batch_size: texts per batch, for ``hf``.
        device: for ``hf``; None is the GPU if there is one.
        unsafe_labels: the labels that mean unsafe, for a classifier whose labels are not beaver-dam's.
        text: the input of such a classifier, with the placeholders ``{prompt}`` and ``{response}``.
        beaverdam_max_length: maximum number of tokens for classifiers with beaver-dam's labels.
        max_model_len: maximum number of tokens for any judge; None is the model's own limit.
        gpu_memory_utilization: as for ``vllm serve``; None is vLLM's default on a GPU, and 0.4 of a CPU's memory.
        tensor_parallel_size: for ``vllm``, as for ``vllm serve``.
        endpoints: for ``server``, such as ``http://host:8000/v1``.
        concurrency: simultaneous requests per endpoint.
        retries: of a request that failed.
        timeout_s: for a reply, including the time in the server's queue.
        api_key_env: the environment variable that holds the endpoints' key; None if they require none.

    Raises:
        InputError: for an unknown engine or dtype, a number out of range, or endpoints without the server engine.
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
        if self.engine not in JUDGE_ENGINES:
            raise unknown("judge engine", self.engine, JUDGE_ENGINES)
        if self.dtype not in JUDGE_DTYPES:
            raise unknown("judge dtype", self.dtype, JUDGE_DTYPES)
        for name in ("batch_size", "tensor_parallel_size", "concurrency"):
            if getattr(self, name) < 1:
                raise InputError(f"The judges' {name.replace('_', ' ')} must be at least 1, got {getattr(self, name)}.")
        if self.retries < 0 or not self.timeout_s > 0:
            raise InputError("The judges' retries must be 0 or more, and their timeout above 0 s.")
        if (self.engine == "server") != bool(self.endpoints):
            raise InputError("The judge engine server and its endpoints (http://host:8000/v1) go together.")

    def resolve_engine(self, preferred: str) -> str:
        """The engine of a judge: ``auto`` means ``preferred`` if vLLM is installed, otherwise transformers."""
        if self.engine != "auto":
            return self.engine
        return "hf" if importlib.util.find_spec("vllm") is None else preferred


def valid_judgement(key: str, scores: Mapping[str, float], cut: bool = False) -> dict[str, Any]:
    """The row of a judgement with scores; ``cut`` says whether the end of the response was left out."""
    return {"key": key, "scores": dict(scores), "cut": cut, "status": OK, "reason": None}


def invalid_judgement(key: str, reason: str, cut: bool = False) -> dict[str, Any]:
    """The row of a judgement without a verdict, and the reason."""
    return {"key": key, "scores": {}, "cut": cut, "status": INVALID, "reason": reason}
