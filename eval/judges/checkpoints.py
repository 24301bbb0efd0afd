"""The checkpoint of a judge that is a model, examined without loading its weights."""

from __future__ import annotations

import math
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
