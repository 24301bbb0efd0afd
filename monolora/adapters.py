"""Loading an adapter folder with its base model."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from monolora.errors import InputError
from monolora.hub import resolve_model


def load_adapted(
    folder: str, base: str | None = None, dtype: torch.dtype = torch.bfloat16
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """A causal language model with the adapter in ``folder``, in eval mode, and its tokenizer.

    Args:
        folder: an adapter folder as ``save_pretrained`` writes it, MonoLoRA or any other PEFT method.
        base: the base model's id or path; by default the one that the adapter names.
        dtype: of the base weights.

    Raises:
        InputError: if the folder holds no adapter, names no base, or does not fit the base.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        raise InputError(f"{folder} holds no adapter: adapter_config.json is missing.")
    try:
        named = base or PeftConfig.from_pretrained(folder).base_model_name_or_path
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder}/adapter_config.json cannot be used: {error}") from error
    if not named:
        raise InputError(f"{folder}/adapter_config.json names no base model. Give it with --model.")
    path = resolve_model(named)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, device_map="auto" if torch.cuda.is_available() else None
    )
    try:
        adapted = PeftModel.from_pretrained(model, folder)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{folder} does not fit {named}: {' '.join(str(error).split())[:500]}") from error
    tokenizer = AutoTokenizer.from_pretrained(folder if (Path(folder) / "tokenizer.json").is_file() else path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return adapted.eval(), tokenizer
