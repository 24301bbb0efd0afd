"""What a judge is: a description that can be hashed and sent to a process, which then holds the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from monolora.beaverdam import MAX_LENGTH
from monolora.errors import InputError, unknown
from monolora.eval.records import INVALID, OK
from monolora.redaction import without_credentials

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
