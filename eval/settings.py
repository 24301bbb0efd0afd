"""The flags of the suite: from the command line, a YAML file, or the run that is gone on with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from monolora.errors import InputError
from monolora.flags import FlagParser, unknown_flag
from monolora.yaml_config import load_yaml, split_config

ENGINES = ("auto", "vllm", "hf", "server")
JUDGE_ENGINES = ("auto", "vllm", "hf", "server")
_ENDPOINTS = ("endpoint", "judge_endpoint")
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
        "shieldgemma[:MODEL], beaverdam[:MODEL], classifier:MODEL, refusal; several with commas",
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
    judge_engine: str = _flag(
        "auto",
        "who runs the judges; auto is vllm for shieldgemma and beaverdam, hf for classifiers",
        choices=JUDGE_ENGINES,
    )
    judge_endpoint: tuple[str, ...] = _flag(
        (), "for --judge-engine server; give it once each", metavar="URL", action="append"
    )
    judge_dtype: str = _flag("auto", "of the judges' weights; auto is their own", choices=("auto", *DTYPES))
    judge_batch_size: int = _flag(16, "responses at a time, where vLLM does not batch them", type=int)
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
                raise InputError(f"--adapter {word} is not NAME=PATH. Write, for example, --adapter mono={word}")
            if name in found or name == "base":
                raise InputError(f"--adapter {name}=… : the name {name!r} is taken. Take another one.")
            found[name] = path
        return found


def parse(words: Sequence[str], prog: str, stored: Mapping[str, Any] | None = None, *, whole: bool = True) -> Settings:
    """The settings in the words of a command line, over those of ``--config``, over those of an earlier run.

    Args:
        words: flags and values.
        prog: for ``--help``.
        stored: the settings that the run's ``run.json`` holds, for stages that go on with it.
        whole: whether to check that the settings are a whole and go together.

    Raises:
        InputError: for flags, keys and values that cannot be.
    """
    path, rest = split_config(list(words))
    parser = _parser(prog)
    if stored:
        parser.set_defaults(**{name: value for name, value in stored.items() if name in _names()})
        typed = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in rest}
        for name in _ENDPOINTS:  # new ones take the place of those of the run, and another engine needs none
            if typed & {name, name.replace("endpoint", "engine")}:
                parser.set_defaults(**{name: []})
    if path:
        rest = [*_as_words(load_yaml(path), path), *rest]
    found = vars(parser.parse(rest))
    chosen: dict[str, Any] = {n: tuple(found[n]) if isinstance(found[n], list) else found[n] for n in _names()}
    settings = Settings(**chosen)
    if whole:
        _check(settings)
    return settings


def _names() -> set[str]:
    return {each.name for each in fields(Settings)}


def _parser(prog: str) -> FlagParser:
    parser = FlagParser(prog, "Flags of all stages. A stage that goes on with a run has that run's own as defaults.")
    parser.add_argument("--config", metavar="FILE", help="flags from a YAML file; the command line goes before it")
    for each in fields(Settings):
        options = dict(each.metadata)
        if isinstance(each.default, bool):
            options["action"] = "store_true"
        elif each.default not in ("", (), None):
            shown = ",".join(each.default) if isinstance(each.default, tuple) else each.default
            options["help"] += f" (default: {shown})"
        # argparse appends to a list only
        default: Any = each.default
        if options.get("action") == "append":
            default = list(default)
        parser.add_argument(f"--{each.name.replace('_', '-')}", default=default, **options)
    return parser


def _as_words(config: Mapping[Any, Any], path: Path) -> list[str]:
    """A YAML mapping as the words that would say the same; ``adapter`` may be a mapping of names to paths."""
    flags = {name.replace("_", "-"): name for name in _names()}
    words: list[str] = []
    for key, value in config.items():
        flag = str(key).replace("_", "-")
        if flag not in flags:
            raise InputError(f"--config {path}: {unknown_flag(f'--{flag}', [f'--{name}' for name in flags])}")
        if flag == "adapter" and isinstance(value, dict):
            value = [f"{name}={folder}" for name, folder in value.items()]
        words += _flag_words(flag, value)
    return words


def _flag_words(flag: str, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [f"--{flag}"]
    if not isinstance(value, list):
        return [f"--{flag}={value}"]
    if flag == "checkpoints":
        return [f"--{flag}", *map(str, value)]
    if flag in ("adapter", "endpoint", "judge-endpoint"):
        return [f"--{flag}={each}" for each in value]
    return [f"--{flag}={','.join(map(str, value))}"]


def _check(settings: Settings) -> None:
    """Refuse values that no run can have."""
    if not settings.out:
        raise InputError("Where to? Give the run's folder with --out.")
    for name in (
        "limit", "task_limit", "max_new_tokens", "batch_size", "judge_batch_size", "max_num_seqs",
        "tensor_parallel_size", "max_model_len", "concurrency",
        "judge_tensor_parallel_size",
    ):  # fmt: skip
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    if not (math.isfinite(settings.temperature) and settings.temperature >= 0):
        raise InputError(f"--temperature must be 0 or more, got {settings.temperature}.")
    if not 0 < settings.top_p <= 1:
        raise InputError(f"--top-p must be above 0 and at most 1, got {settings.top_p}.")
    if settings.retries < 0 or not settings.timeout > 0:
        raise InputError("--retries must be 0 or more, and --timeout above 0.")
    if settings.gpu_memory_utilization is not None and not 0 < settings.gpu_memory_utilization <= 1:
        raise InputError(f"--gpu-memory-utilization is a share of the memory, got {settings.gpu_memory_utilization}.")
    for engine, endpoints, flag in (
        (settings.engine, settings.endpoint, "endpoint"),
        (settings.judge_engine, settings.judge_endpoint, "judge-endpoint"),
    ):
        if (engine == "server") != bool(endpoints):
            raise InputError(
                f"--{flag} http://host:8000/v1 and {flag.replace('endpoint', 'engine')} server go together."
            )
