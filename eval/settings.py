"""The settings of a run. Each is a flag."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from monolora.errors import InputError
from monolora.eval.judges.base import DTYPES as JUDGE_DTYPES
from monolora.eval.judges.base import ENGINES as JUDGE_ENGINES

ENGINES = ("auto", "vllm", "hf", "server")
DTYPES = ("bfloat16", "float16", "float32")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in (part.strip() for part in text.split(",")) if word)


def _flag(default: Any, help: str, **options: Any) -> Any:  # noqa: A002 (argparse's own name)
    return field(default=default, metadata={"help": help} | options)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run does. Each field is a flag, with hyphens for underscores."""

    out: str = _flag("", "the run's folder; what is in it already is not done again", metavar="RUN")
    model: str = _flag("", "the base model: a path, a hub id, or smollm2-135m-instruct")
    adapter: tuple[str, ...] = _flag(
        (), "an adapter beside the base, or a whole finetuned model; give it once each", metavar="NAME=PATH",
        action="append",
    )  # fmt: skip
    checkpoints: tuple[str, ...] = _flag(
        (), "adapters along one training run, as RUN/checkpoint-*", metavar="PATH", nargs="+"
    )
    suite: tuple[str, ...] = _flag(
        ("alignment",), "alignment, beavertails, beavertails-eval, xstest, or a file; several with commas", type=_words
    )
    tasks: tuple[str, ...] = _flag(
        (), "task scores: sst2, dolly, demo, or a data set; several with commas", type=_words
    )
    judges: tuple[str, ...] = _flag(
        ("shieldgemma", "beaverdam", "refusal"),
        "shieldgemma[:MODEL], beaverdam[:MODEL], classifier:MODEL; several with commas; refusal is always there",
        type=_words,
    )
    limit: int | None = _flag(None, "prompts of each safety set", type=int)
    task_limit: int | None = _flag(None, "rows of each task", type=int)
    unsafe_only: bool = _flag(False, "of beavertails, only the rows that its people called unsafe")
    max_new_tokens: int = _flag(512, "of each response", type=int)
    temperature: float = _flag(0.0, "0 is greedy", type=float)
    top_p: float = _flag(1.0, "with --temperature", type=float)
    seed: int = _flag(0, "of sampling and of the bootstrap", type=int)
    engine: str = _flag("auto", "who generates; auto is vllm where it is installed, else hf", choices=ENGINES)
    endpoint: tuple[str, ...] = _flag(
        (), "for --engine server: http://host:8000/v1; give it once each", metavar="URL", action="append"
    )
    concurrency: int = _flag(32, "requests at a time and endpoint", type=int)
    retries: int = _flag(5, "of a request that an endpoint could not answer", type=int)
    timeout: float = _flag(600.0, "seconds that an endpoint has for a request", type=float)
    api_key_env: str | None = _flag(None, "the environment variable with the endpoints' key", metavar="NAME")
    dtype: str = _flag("bfloat16", "of the base weights", choices=DTYPES)
    batch_size: int = _flag(16, "prompts at a time with --engine hf, and when sparsity is measured", type=int)
    max_model_len: int | None = _flag(None, "tokens of prompt and response (default: the model's own)", type=int)
    max_num_seqs: int = _flag(256, "as for vllm serve", type=int)
    gpu_memory_utilization: float | None = _flag(
        None, "as for vllm serve (default: 0.9, of a CPU's memory 0.4)", type=float
    )
    tensor_parallel_size: int = _flag(1, "as for vllm serve", type=int)
    batch_invariant: bool = _flag(False, "vLLM's mode whose answers do not depend on the batch (some GPUs)")
    skip_canary: bool = _flag(False, "do not ask first whether vLLM answers as transformers does")
    skip_sparsity: bool = _flag(False, "do not measure sparsity, for which transformers loads the base here")
    judge_engine: str = _flag(
        "auto",
        "who runs the judges; auto is vllm for shieldgemma and beaverdam, hf for classifiers",
        choices=JUDGE_ENGINES,
    )
    judge_endpoint: tuple[str, ...] = _flag(
        (), "for --judge-engine server; give it once each", metavar="URL", action="append"
    )
    judge_dtype: str = _flag("auto", "of the judges' weights; auto is their own", choices=JUDGE_DTYPES)
    judge_batch_size: int = _flag(16, "responses at a time, where vLLM does not batch them", type=int)
    judge_max_model_len: int | None = _flag(None, "tokens that a judge reads (default: all that it can)", type=int)
    judge_device: str | None = _flag(None, "with --judge-engine hf (default: the GPU where there is one)")
    judge_text: str | None = _flag(
        None, "for a classifier with labels of its own: what it reads, with {prompt} and {response} in it"
    )
    judge_tensor_parallel_size: int = _flag(1, "as --tensor-parallel-size, of the judges", type=int)
    unsafe_labels: tuple[str, ...] = _flag(
        (), "for a classifier with labels of its own: those that mean unsafe; with commas", type=_words
    )
    keep_going: bool = _flag(False, "go on without a judge that cannot be had")
    retry_invalid: bool = _flag(False, "ask again for what could not be answered or judged")

    def adapters(self) -> dict[str, str]:
        """Folders by name, as ``--adapter`` gives them.

        Raises:
            InputError: for a word that is not NAME=PATH, and a name given twice.
        """
        found: dict[str, str] = {}
        for word in self.adapter:
            name, equals, path = word.partition("=")
            if not (name and equals and path):
                raise InputError(
                    f"--adapter {word} is not NAME=PATH. Write, for example, --adapter mono={path or word.rstrip('=')}"
                )
            if name in found or name == "base":
                raise InputError(f"--adapter {name}=… : the name {name!r} is taken. Take another one.")
            found[name] = path
        return found

    def check(self) -> None:
        """Refuse what no run can have.

        Raises:
            InputError: for a value out of range, and for flags that do not go together.
        """
        if not self.out:
            raise InputError("Where to? Give the run's folder with --out.")
        for name in (
            "limit", "task_limit", "max_new_tokens", "batch_size", "judge_batch_size", "max_num_seqs",
            "tensor_parallel_size", "max_model_len", "concurrency",
            "judge_tensor_parallel_size", "judge_max_model_len",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"--temperature must be 0 or more, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p must be above 0 and at most 1, got {self.top_p}.")
        if self.retries < 0 or not self.timeout > 0:
            raise InputError("--retries must be 0 or more, and --timeout above 0.")
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization <= 1:
            raise InputError(f"--gpu-memory-utilization is a share of the memory, got {self.gpu_memory_utilization}.")
        for engine, endpoints, flag in (
            (self.engine, self.endpoint, "endpoint"),
            (self.judge_engine, self.judge_endpoint, "judge-endpoint"),
        ):
            if (engine == "server") != bool(endpoints):
                raise InputError(
                    f"--{flag} http://host:8000/v1 and {flag.replace('endpoint', 'engine')} server go together."
                )
