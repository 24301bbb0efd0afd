"""The source of a merge: adapters with their weights, their base model, and the run that trained them."""

from __future__ import annotations

import logging
import math
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig
from trl.trainer.utils import get_quantization_config

from monolora import run_record
from monolora.adapters import adapter_config, adapter_tokenizer, load_adapted, load_sum
from monolora.errors import InputError
from monolora.hub import load_causal_lm, load_config, on_gpus, resolve_model
from monolora.merge.quantizer import dtype_name, dtype_named
from monolora.recipes.checkpoint_settings import Loading
from monolora.run_record import fingerprint_files

_QUANTIZATION = (
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_quant_type",
    "use_bnb_nested_quant",
    "bnb_4bit_quant_storage",
)
# Warnings of torch and transformers about weights on disk, which are expected here.
_OFFLOADING = (
    "for .*: copying from a non-meta parameter",
    "Attempting to save a model with offloaded modules",
    r"You are calling .generate\(\) with the `input_ids` being on a device type different",
)


@dataclass(frozen=True, kw_only=True)
class MergeSource:
    """One adapter, or a weighted sum of several, on a base model.

    Attributes:
        adapters: their folders.
        weights: one factor an adapter.
        model: id or path of the base model.
        dtype: of the base weights when loaded, by torch's name.
        own_dtype: of the base weights on disk.
        quantization: TRL's flags of a quantized base; empty for a dense one.
        max_memory: as for ``from_pretrained``, per device; empty to leave it to accelerate.
        run: the record of the run that trained the first adapter, or None.
    """

    adapters: tuple[str, ...]
    weights: tuple[float, ...]
    model: str
    dtype: str
    own_dtype: str
    quantization: Mapping[str, Any]
    max_memory: Mapping[str, str]
    run: Mapping[str, Any] | None

    @property
    def is_monolora(self) -> bool:
        """Whether the adapters are MonoLoRA; a single one may also be of another method of PEFT."""
        return bool(adapter_config(self.adapters[0]).peft_type == "MONOLORA")

    @cached_property
    def fingerprint(self) -> str:
        """Of the base model's weights."""
        return fingerprint_files(resolve_model(self.model))

    @property
    def trained(self) -> Mapping[str, Any] | None:
        """The results of the run if they apply to this model: one adapter, at full weight."""
        alone = len(self.adapters) == 1 and self.weights[0] == 1 and self.run is not None
        return self.run["results"] if alone and self.run is not None and self.run["status"] == "done" else None

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the first adapter, or of the base."""
        return adapter_tokenizer(self.adapters[0], self.model)

    @property
    def precise_dtype(self) -> str:
        """A dtype that holds the base weights both as stored and as merged, for comparing the two."""
        if self.quantization:
            return self.dtype
        return dtype_name(torch.promote_types(dtype_named(self.dtype), dtype_named(self.own_dtype)))

    @contextmanager
    def trained_base(self) -> Iterator[PreTrainedModel]:
        """The base model in the precision of the run that trained the first adapter."""
        assert self.run is not None
        run = replace(self, dtype=self.trained_dtype, quantization=_quantization(self.run["config"]))
        with self._offloading() as options:
            yield load_causal_lm(resolve_model(self.model), dtype=run.dtype, **run._quantized(), **on_gpus() | options)

    @property
    def trained_dtype(self) -> str:
        """The dtype of the base weights in the run that trained the first adapter."""
        return _dtype(self.run["config"].get("dtype") if self.run else None, self.own_dtype)

    @contextmanager
    def loaded(self, dtype: str | None = None) -> Iterator[tuple[PeftModel, PreTrainedTokenizerBase]]:
        """The adapted model in evaluation mode, and its tokenizer; weights that exceed the memory are on disk."""
        dtype = dtype or self.dtype
        with self._offloading() as options:
            yield load_sum(self.adapters, self.weights, self.model, dtype=dtype, **self._quantized(), **options)

    @contextmanager
    def merged(self, folder: str) -> Iterator[PreTrainedModel | PeftModel]:
        """The merge in ``folder``, a checkpoint or a LoRA adapter on the base, to be compared with the adapter."""
        # Weights and units in the dtype of the comparison are loaded unchanged.
        dtype = "auto" if self.precise_dtype == self.dtype else self.precise_dtype
        with self._offloading() as options:
            if (Path(folder) / "adapter_config.json").is_file():
                yield load_adapted(folder, self.model, dtype=self.precise_dtype, **self._quantized(), **options)[0]
            else:
                yield load_causal_lm(folder, dtype=dtype, **on_gpus() | options).eval()

    def _quantized(self) -> dict[str, Any]:
        if not self.quantization:
            return {}
        return {"quantization_config": get_quantization_config(ModelConfig(dtype=self.dtype, **self.quantization))}

    @contextmanager
    def _offloading(self) -> Iterator[dict[str, Any]]:
        if not self.max_memory:
            yield {}
            return
        folder = tempfile.mkdtemp(prefix="monolora-offload-")
        limits = {int(device) if device.isdigit() else device: size for device, size in self.max_memory.items()}
        logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                for known in _OFFLOADING:
                    warnings.filterwarnings("ignore", message=known)
                yield {"device_map": "auto", "max_memory": limits, "offload_folder": folder}
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def described(self) -> dict[str, Any]:
        """The report's entries, enough to load the same again."""
        return {
            "adapters": list(self.adapters),
            "adapter_fingerprints": [fingerprint_files(folder) for folder in self.adapters],
            "weights": list(self.weights),
            "model": self.model,
            "model_fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "base_dtype": self.own_dtype,
            "compared_in": self.precise_dtype,
            "quantization": dict(self.quantization),
        }


def from_settings(adapters: Sequence[str], loading: Loading) -> MergeSource:
    """The source that the settings name.

    Raises:
        InputError: if an adapter or the base is missing or damaged, or the weights are not one an adapter.
    """
    config = adapter_config(adapters[0])
    for folder in adapters[1:]:
        adapter_config(folder)
    weights = loading.weights or (1.0,) * len(adapters)
    if len(weights) != len(adapters):
        raise InputError(f"Got {len(adapters)} adapters and {len(weights)} --weights. Give one weight an adapter.")
    if not all(map(math.isfinite, weights)):
        raise InputError(f"--weights must be numbers, got {' '.join(map(str, weights))}.")
    run = run_record.read(Path(adapters[0]), "Copy the folder again, or remove that file.")
    trained: Mapping[str, Any] = run["config"] if run else {}
    # The run names it as its flags did; the adapter by a path, where it came from one, which may be another machine's.
    recorded = config.base_model_name_or_path
    model = loading.model or (recorded if recorded and Path(recorded).exists() else trained.get("model", recorded))
    if not model:
        raise InputError(f"{adapters[0]}/adapter_config.json names no base model. Give it with --model.")
    in_4bit = {"load_in_4bit": True, "load_in_8bit": False} if loading.load_in_4bit else {}
    own_dtype = stored_dtype(resolve_model(model))
    source = MergeSource(
        adapters=tuple(adapters),
        weights=weights,
        model=model,
        dtype=_dtype(loading.dtype or trained.get("dtype"), own_dtype),
        own_dtype=own_dtype,
        quantization=_quantization({**trained, **in_4bit}),
        max_memory=dict(_device_and_size(word) for word in loading.max_memory),
        run=run,
    )
    if source.quantization and source.max_memory:
        raise InputError("--max-memory has no effect on a quantized base, which stays in memory. Leave it out.")
    _check_base(source, deliberate=loading.model is not None)
    return source


def stored_dtype(folder: str) -> str:
    """The dtype of a model's weights on disk, by torch's name.

    Raises:
        InputError: if there is no readable config.json.
    """
    config: Any = load_config(folder)
    return dtype_name(config.dtype or config.get_text_config().dtype or _first_dtype(folder))


def _first_dtype(folder: str) -> torch.dtype:
    """The dtype of the first floating-point tensor, as transformers finds it, for a config.json without one."""
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                tensor = file.get_slice(key)
                if tensor.get_dtype() in ("F32", "BF16", "F16"):
                    return file.get_tensor(key).dtype
    return torch.float32


def _dtype(name: str | None, own: str) -> str:
    return name if name in ("float32", "bfloat16", "float16") else own


def _quantization(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a quantized base; empty for a dense one."""
    is_quantized = flags.get("load_in_4bit") or flags.get("load_in_8bit")
    return {key: flags[key] for key in _QUANTIZATION if key in flags} if is_quantized else {}


def _device_and_size(word: str) -> tuple[str, str]:
    device, _, size = word.partition("=")
    if not re.fullmatch(r"\d+([KMG]i?B)", size) or not (device.isdigit() or device in ("cpu", "mps")):
        raise InputError(f"--max-memory {word} is not DEVICE=SIZE. Write, for example, 0=20GiB cpu=30GiB.")
    return device, size


def _check_base(source: MergeSource, deliberate: bool) -> None:
    """Check that the base has the weights that the run recorded; a ``deliberate`` other one only gives a warning."""
    if source.run is None:
        return
    recorded = source.run.get("fingerprints", {}).get("model")
    if recorded == source.fingerprint:
        return
    message = (
        f"{source.adapters[0]} was trained on other weights than those of {source.model} (fingerprint "
        f"{recorded}, here {source.fingerprint})."
    )
    if not deliberate:
        raise InputError(f"{message} Give the right model with --model; its fingerprint is then not checked.")
    warnings.warn(message, stacklevel=2)
