"""The settings of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from monolora.beaverdam import MAX_LENGTH
from monolora.cli.flags import Flags, setting, words
from monolora.errors import InputError
from monolora.files import TRUST_HELP
from monolora.redaction import without_credentials

ENGINES = ("auto", "vllm", "hf", "server")
DTYPES = ("bfloat16", "float16", "float32")
JUDGE_ENGINES = ("auto", "vllm", "hf", "server")
JUDGE_DTYPES = ("auto", "float32", "bfloat16", "float16")
ENDPOINTS = ("endpoint", "judge_endpoint")


@dataclass(frozen=True, kw_only=True)
class Settings(Flags):
    """Settings of a run. Each field is a flag, with hyphens for underscores."""

    out: str = setting("", "folder of the run; results that it holds already are kept", metavar="RUN")
    model: str = setting("", "base model: a path, a hub id, or smollm2-135m-instruct")
    adapter: tuple[str, ...] = setting(
        (), "adapter beside the base, or a whole finetuned model; repeatable", metavar="NAME=PATH",
        action="append",
    )  # fmt: skip
    checkpoints: tuple[str, ...] = setting(
        (), "checkpoints of one training run, as RUN/checkpoint-*", metavar="PATH", nargs="+"
    )
    suite: tuple[str, ...] = setting(
        ("alignment",),
        "alignment, beavertails, beavertails-eval, xstest, chat, refusals, or a file; several with commas",
        type=words,
    )
    tasks: tuple[str, ...] = setting(
        (), "task scores: sst2, dolly, demo, or a data set; several with commas", type=words
    )
    judges: tuple[str, ...] = setting(
        ("shieldgemma", "beaverdam", "refusal"),
        "shieldgemma[:MODEL], beaverdam[:MODEL], classifier:MODEL; several with commas; refusal is always included",
        type=words,
    )
    limit: int | None = setting(None, "prompts of each safety set", type=int, at_least=1)
    xstest_limit: int | None = setting(None, "prompts of XSTest (default: --limit)", type=int, at_least=1)
    task_limit: int | None = setting(None, "rows of each task", type=int, at_least=1)
    unsafe_only: bool = setting(False, "only the rows of beavertails that people labelled unsafe")
    max_new_tokens: int = setting(512, "tokens of each response", type=int, at_least=1)
    temperature: float = setting(0.0, "sampling temperature; 0 for greedy decoding", type=float, at_least=0)
    top_p: float = setting(1.0, "share of nucleus sampling, with --temperature", type=float, above=0, at_most=1)
    chat_template_path: str | None = setting(
        None, "chat template for all models: its file, or a folder whose tokenizer has one (default: their own)",
        metavar="PATH",
    )  # fmt: skip
    seed: int = setting(0, "seed of sampling and of the bootstrap", type=int)
    engine: str = setting(
        "auto", "engine of the responses; auto is vllm where it is installed, else hf", choices=ENGINES
    )
    endpoint: tuple[str, ...] = setting(
        (), "URL for --engine server, as http://host:8000/v1; repeatable", metavar="URL", action="append"
    )
    concurrency: int = setting(32, "simultaneous requests to each endpoint", type=int, at_least=1)
    retries: int = setting(5, "retries of a request that an endpoint could not answer", type=int, at_least=0)
    timeout: float = setting(600.0, "seconds before a request to an endpoint fails", type=float, above=0)
    api_key_env: str | None = setting(None, "environment variable with the endpoints' key", metavar="NAME")
    dtype: str = setting("bfloat16", "dtype of the base weights", choices=DTYPES)
    batch_size: int = setting(16, "prompts in a batch, with --engine hf and for sparsity", type=int, at_least=1)
    max_model_len: int | None = setting(
        None, "tokens of prompt and response (default: the model's own)", type=int, at_least=1
    )
    max_num_seqs: int = setting(256, "as for vllm serve", type=int, at_least=1)
    gpu_memory_utilization: float | None = setting(
        None, "as for vllm serve (default: 0.9, of a CPU's memory 0.4)", type=float, above=0, at_most=1
    )
    tensor_parallel_size: int = setting(1, "as for vllm serve", type=int, at_least=1)
    data_parallel: int = setting(
        1, "engines at a time, vllm or hf, each with its share of the prompts, and of the GPUs", type=int, at_least=1
    )
    batch_invariant: bool = setting(False, "vLLM's mode whose answers do not depend on the batch (some GPUs)")
    skip_canary: bool = setting(False, "no check that vLLM answers as transformers does")
    drift: int | None = setting(
        None, "number of the base's answers to each set over which drift and silent tokens are measured", type=int,
        at_least=1,
    )  # fmt: skip
    drift_sets: tuple[str, ...] = setting(
        (),
        "sets of --drift, as --suite or task:NAME; only the base answers those that --suite and --tasks lack (default: "
        "the first safety set); several with commas",
        type=words,
    )
    refusal_margin: int | None = setting(
        None, "number of prompts of each safety and over-refusal set over which the refusal margin is measured",
        type=int, at_least=1,
    )  # fmt: skip
    coherence: int | None = setting(
        None, "number of each model's answers to each safety set whose likelihood under the base is measured", type=int,
        at_least=1,
    )  # fmt: skip
    skip_sparsity: bool = setting(False, "no sparsity, for which transformers loads the base here")
    judge_engine: str = setting(
        "auto",
        "engine of the judges; auto is vllm for shieldgemma and beaverdam, hf for classifiers",
        choices=JUDGE_ENGINES,
    )
    judge_endpoint: tuple[str, ...] = setting(
        (), "URL for --judge-engine server; repeatable", metavar="URL", action="append"
    )
    judge_dtype: str = setting("auto", "dtype of the judges' weights; auto is their own", choices=JUDGE_DTYPES)
    judge_batch_size: int = setting(16, "responses in a batch, where vLLM does not form it", type=int, at_least=1)
    judge_max_model_len: int | None = setting(
        None, "tokens that a judge reads (default: all that it can)", type=int, at_least=1
    )
    beaverdam_max_length: int = setting(
        MAX_LENGTH, "tokens that beaver-dam reads: 512 by its class, 256 in the public protocol", type=int, at_least=1
    )
    judge_device: str | None = setting(None, "device with --judge-engine hf (default: the GPU where there is one)")
    judge_text: str | None = setting(
        None, "text that a classifier with labels of its own reads, with {prompt} and {response} in it"
    )
    judge_tensor_parallel_size: int = setting(1, "as --tensor-parallel-size, of the judges", type=int, at_least=1)
    unsafe_labels: tuple[str, ...] = setting(
        (), "labels of a classifier with labels of its own that mean unsafe; several with commas", type=words
    )
    trust_remote_code: bool = setting(False, TRUST_HELP)
    keep_going: bool = setting(False, "continuation without a judge that is unavailable")
    retry_invalid: bool = setting(False, "repetition of failed responses and judgements")

    def adapters(self) -> dict[str, str]:
        """Folders by name, as ``--adapter`` gives them; raises as :func:`named_paths`."""
        return named_paths(self.adapter, "--adapter", taken="base")

    def check(self) -> None:
        """Raises: InputError, for a value out of range, and for inconsistent flags."""
        if not self.out:
            raise InputError("Where to? Give the run's folder with --out.")
        super().check()
        if self.drift_sets and self.drift is None:
            raise InputError("--drift-sets has no effect without --drift. Give the number of prompts with --drift 50.")
        for engine, endpoints, flag in (
            (self.engine, self.endpoint, "endpoint"),
            (self.judge_engine, self.judge_endpoint, "judge-endpoint"),
        ):
            if (engine == "server") != bool(endpoints):
                raise InputError(
                    f"--{flag} http://host:8000/v1 and {flag.replace('endpoint', 'engine')} server go together."
                )
            for url in endpoints:
                if not url.startswith(("http://", "https://")):
                    raise InputError(f"--{flag} {without_credentials(url)} is no URL. Write http://host:8000/v1.")

    def stored(self) -> dict[str, Any]:
        """All settings as records hold them: endpoints without user, password and query."""
        endpoints = {name: tuple(map(without_credentials, getattr(self, name))) for name in ENDPOINTS}
        return asdict(self) | endpoints


def named_paths(words: Iterable[str], flag: str, taken: str = "") -> dict[str, str]:
    """Paths by name, from words as NAME=PATH.

    Raises:
        InputError: for another word, and a name that is ``taken`` or given twice.
    """
    paths: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (name and equals and path):
            example = f"{flag} mono={path or word.rstrip('=')}"
            raise InputError(f"{flag} {word} is not NAME=PATH. Write, for example, {example}")
        if name in paths or name == taken:
            raise InputError(f"{flag} {name}=… : the name {name!r} is taken. Take another one.")
        paths[name] = path
    return paths
