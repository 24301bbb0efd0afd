"""Loading an adapter folder with its base model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import PreTrainedTokenizerBase

from monolora.checkpoint import check_finite, check_weights_file, is_adapter_tensor
from monolora.errors import InputError, in_one_line
from monolora.hub import load_causal_lm, load_tokenizer, resolve_model


def load_adapted(
    folder: str, base: str | None = None, dtype: torch.dtype = torch.bfloat16
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """A causal language model with the adapter in ``folder``, in eval mode, and its tokenizer.

    Args:
        folder: an adapter folder as ``save_pretrained`` writes it, MonoLoRA or any other PEFT method.
        base: the base model's id or path; by default the one that the adapter names.
        dtype: of the base weights.

    Raises:
        InputError: if the folder holds no adapter, names no base, does not fit the base, or its files are damaged.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        raise InputError(f"{folder} holds no adapter: adapter_config.json is missing.")
    check_weights_file(folder)
    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise InputError(f"{folder} holds no weights: adapter_model.safetensors is missing. Copy the whole folder.")
    config = _config(folder)
    named = base or config.base_model_name_or_path
    if not named:
        raise InputError(f"{folder}/adapter_config.json names no base model. Give it with --model.")
    path = resolve_model(named)
    model = load_causal_lm(path, dtype=dtype, device_map="auto" if torch.cuda.is_available() else None)
    model.name_or_path = named
    try:
        with warnings.catch_warnings():
            # PEFT only warns where a file lacks tensors of an adapter that is not MonoLoRA.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model, folder)
        check_finite({name: p for name, p in adapted.named_parameters() if is_adapter_tensor(name, "default")})
    except (ValueError, RuntimeError, UserWarning) as error:
        raise InputError(f"{folder} does not fit {named}: {' '.join(str(error).split())[:500]}") from error
    assert isinstance(adapted, PeftModel)
    tokenizer = load_tokenizer(folder if (Path(folder) / "tokenizer.json").is_file() else path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return adapted.eval(), tokenizer


def _config(folder: str) -> PeftConfig:
    path = Path(folder) / "adapter_config.json"
    try:
        named = json.loads(path.read_text())["peft_type"]
        if named not in PEFT_TYPE_TO_CONFIG_MAPPING:
            raise ValueError(f"its peft_type {named!r} is no method of PEFT, nor MONOLORA")
        return PeftConfig.from_pretrained(folder)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{path} cannot be used: {in_one_line(error)}") from error
