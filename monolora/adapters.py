"""Loading adapter folders with their base model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import PreTrainedTokenizerBase

from monolora.checkpoint import check_finite, check_weights_file, is_adapter_tensor
from monolora.errors import InputError, in_one_line
from monolora.hub import load_causal_lm, load_tokenizer, resolve_model

SUM = "sum"  # the name that a weighted sum of adapters gets


def load_adapted(
    folder: str, base: str | None = None, dtype: torch.dtype | str = torch.bfloat16, **options: Any
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """A causal language model with the adapter in ``folder``, in eval mode, and its tokenizer.

    Args:
        folder: an adapter folder as ``save_pretrained`` writes it, MonoLoRA or any other PEFT method.
        base: the base model's id or path; by default the one that the adapter names.
        dtype: of the base weights.
        options: for the base model's ``from_pretrained``: ``quantization_config``, ``max_memory``, …

    Raises:
        InputError: if the folder holds no adapter, names no base, does not fit the base, or its files are damaged.
    """
    named = base or adapter_config(folder).base_model_name_or_path
    if not named:
        raise InputError(f"{folder}/adapter_config.json names no base model. Give it with --model.")
    path = resolve_model(named)
    if torch.cuda.is_available():
        options = {"device_map": "auto"} | options
    model = load_causal_lm(path, dtype=dtype, **options)
    model.name_or_path = named
    offload = {key: value for key, value in options.items() if key == "offload_folder"}
    adapted = _fitting(folder, named, lambda: PeftModel.from_pretrained(model, folder, **offload))
    check_finite({name: p for name, p in adapted.named_parameters() if is_adapter_tensor(name, "default")})
    return adapted.eval(), adapter_tokenizer(folder, named)


def adapter_tokenizer(folder: str, base: str) -> PreTrainedTokenizerBase:
    """The tokenizer saved with the adapter, else that of its base; with a padding token.

    Raises:
        InputError: if there is none, or its files are damaged.
    """
    tokenizer = load_tokenizer(folder if (Path(folder) / "tokenizer.json").is_file() else resolve_model(base))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_sum(
    folders: Sequence[str], weights: Sequence[float], base: str | None = None, **options: Any
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """As :func:`load_adapted`, for the weighted sum of several MonoLoRA adapters on one base.

    Args:
        folders: adapter folders; the first one's base and tokenizer are taken.
        weights: one factor an adapter, of any sign.
        base: as for :func:`load_adapted`.
        options: as for :func:`load_adapted`, the dtype too.

    Raises:
        InputError: as :func:`load_adapted`, and for adapters that cannot be added up exactly.
    """
    model, tokenizer = load_adapted(folders[0], base, **options)
    if len(folders) == 1 and weights[0] == 1:
        return model, tokenizer
    for folder in folders:
        if adapter_config(folder).peft_type != "MONOLORA":
            raise InputError(f"{folder} is no MonoLoRA adapter; only those are added up here. Merge it by itself.")
    names = [f"adapter{number}" for number in range(len(folders))]
    for name, folder in zip(names, folders, strict=True):
        _fitting(folder, "the base of the first", partial(model.load_adapter, folder, name))
    try:
        model.add_weighted_adapter(names, list(weights), SUM, "cat")
    except ValueError as error:
        raise InputError(f"These adapters cannot be added up: {in_one_line(error)}") from error
    model.set_adapter(SUM)
    for name in ["default", *names]:
        model.delete_adapter(name)
    return model.eval(), tokenizer


def adapter_config(folder: str) -> PeftConfig:
    """The config of the adapter in a folder, whose weights are there and whole.

    Raises:
        InputError: if there is no adapter, its files are damaged, or its method is unknown.
    """
    path = Path(folder) / "adapter_config.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no adapter: adapter_config.json is missing.")
    check_weights_file(folder)
    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise InputError(f"{folder} holds no weights: adapter_model.safetensors is missing. Copy the whole folder.")
    try:
        named = json.loads(path.read_text())["peft_type"]
        if named not in PEFT_TYPE_TO_CONFIG_MAPPING:
            raise ValueError(f"its peft_type {named!r} is no method of PEFT, nor MONOLORA")
        return PeftConfig.from_pretrained(folder)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{path} cannot be used: {in_one_line(error)}") from error


def _fitting(folder: str, base: str, load: Callable[[], Any]) -> Any:
    """What ``load`` returns; that a file does not fit its base becomes one line."""
    try:
        with warnings.catch_warnings():
            # PEFT only warns where a file lacks tensors of an adapter that is not MonoLoRA.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return load()
    except (ValueError, RuntimeError, UserWarning) as error:
        raise InputError(f"{folder} does not fit {base}: {' '.join(str(error).split())[:500]}") from error
