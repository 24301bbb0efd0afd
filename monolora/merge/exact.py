"""The exact export: base and adapter in one Hugging Face folder, with the adapted model's logits, bit for bit."""

from __future__ import annotations

import os

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from monolora.merge.baked import bake
from monolora.merge.quantizer import MonoLoraQuantizationConfig
from monolora.merge.unload import unload
from monolora.model_files import save_model


def export_exact(
    model: PeftModel,
    folder: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write a folder that ``from_pretrained`` of every transformers class loads once ``monolora`` is imported.

    Without ``monolora`` the loading fails, with a message that says so.

    Args:
        model: a model with one active MonoLoRA adapter. It is consumed: load the folder to go on.
        folder: where to write config, generation config and safetensors.
        tokenizer: written beside the model, its chat template too.
        max_shard_size: the largest size of one file of weights.

    Raises:
        ValueError: where no single adapter is active, or the adapter targets a layer that cannot keep it.
    """
    base, units = unload(model)
    bake(base, units)
    base.config.quantization_config = MonoLoraQuantizationConfig.of(base)
    save_model(base, folder, tokenizer, max_shard_size=max_shard_size)
