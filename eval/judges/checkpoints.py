"""A judge's checkpoint, looked at without loading its weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig

from monolora.errors import InputError
from monolora.eval.judges.base import JudgeOptions
from monolora.hub import load_config, resolve_model
from monolora.provenance import fingerprint_files

CLASSIFIER = "ForSequenceClassification"
_TOKENIZER_FILES = ("tokenizer.json", ".model", "vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json")


class Checkpoint(NamedTuple):
    """A model folder.

    Attributes:
        name: as the user gave it.
        folder: where it lies.
        config: of transformers.
    """

    name: str
    folder: str
    config: PreTrainedConfig

    @property
    def facts(self) -> dict[str, Any]:
        """Its config, as JSON: what an architecture has no notion of is not there."""
        return self.config.to_dict()

    @property
    def labels(self) -> list[str]:
        """Of a classifier, in the order of its logits."""
        return [label for _, label in sorted((self.config.id2label or {}).items())]


def find(name: str, architecture: str, options: JudgeOptions) -> Checkpoint:
    """The checkpoint of a judge.

    Args:
        name: a path or a hub id.
        architecture: how the name of its class has to end, such as ``ForSequenceClassification``.
        options: with a server, the folder needs no weights.

    Raises:
        InputError: if it cannot be had, is of another architecture, or its weights are no safetensors.
    """
    folder = resolve_model(name)
    config = load_config(folder)
    given = (config.architectures or ["unknown"])[0]
    if not given.endswith(architecture):
        raise InputError(f"{name} is of the class {given}; this judge has to be a …{architecture}.")
    if options.engine != "server" and not list(Path(folder).glob("*.safetensors")):
        raise InputError(
            f"{folder} holds no *.safetensors, and other weights are not loaded. Convert them once: load {name} with "
            "transformers, save_pretrained(FOLDER), and give that folder."
        )
    return Checkpoint(name, folder, config)


def engine_of(options: JudgeOptions, automatic: str) -> str:
    """Who runs a judge; ``automatic`` is what ``auto`` means for it."""
    if options.engine != "auto":
        return options.engine
    return "hf" if importlib.util.find_spec("vllm") is None else automatic


# Options that one engine alone reads.
_READ_BY = {"server": ("concurrency", "retries", "timeout_s", "api_key_env"), "vllm": ("tensor_parallel_size",)}


def settings(checkpoint: Checkpoint, options: JudgeOptions, engine: str, max_length: int) -> dict[str, Any]:
    """What every model judge's process is told."""
    return {
        "model": checkpoint.name,
        "folder": checkpoint.folder,
        "engine": engine,
        "dtype": _dtype(checkpoint, options),
        "batch_size": options.batch_size,
        "device": options.device,
        "max_length": max_length,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "endpoints": list(options.endpoints),
    } | {name: getattr(options, name) for name in _READ_BY.get(engine, ())}


def identity(checkpoint: Checkpoint, told: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What makes a judge's scores what they are: weights, config, tokenizer, engine, dtype, and ``more``.

    A hub id is part of it; the path of a folder is not, for a folder may be moved.
    """
    return {
        "model": None if Path(checkpoint.name).exists() else checkpoint.name,
        "revision": _revision(checkpoint.folder),
        "weights": fingerprint_files(checkpoint.folder),
        "config": fingerprint_files(checkpoint.folder, "config.json"),
        "tokenizer": [fingerprint_files(checkpoint.folder, suffix) for suffix in _TOKENIZER_FILES],
        "engine": told["engine"],
        "dtype": told["dtype"],
        "max_length": told["max_length"],
        **more,
    }


def _revision(folder: str) -> str | None:
    """The commit, if the folder is one of the hub's cache."""
    path = Path(folder)
    return path.name if path.parent.name == "snapshots" else None


def _dtype(checkpoint: Checkpoint, options: JudgeOptions) -> str:
    """By name, for vLLM's own ``auto`` is another one than transformers'."""
    if options.dtype != "auto":
        return options.dtype
    return str(checkpoint.config.dtype or torch.float32).removeprefix("torch.")
