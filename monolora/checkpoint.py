"""Adapter files: the names of their tensors, and the checks that no loader may skip.

On disk the tensors are called ``monolora_A`` and ``monolora_B`` (``monolora_embedding_A/B`` for embeddings),
so that a loader which knows only LoRA fails instead of dropping the activation in silence. In memory they keep
LoRA's names, because the mechanics around them are PEFT's.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from monolora.errors import InputError

MEMORY_PREFIX = "lora_"
DISK_PREFIX = "monolora_"
_MEMORY_NAME = re.compile(r"\.lora_((?:embedding_)?[AB])(?=\.|$)")
_DISK_NAME = re.compile(r"\.monolora_((?:embedding_)?[AB])(?=\.|$)")


class AdapterFileError(InputError):
    """An adapter file that must not be loaded; the message names the tensor or the file, and the mend."""


def to_disk_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``…lora_A…`` to ``…monolora_A…`` in every key; other keys stay."""
    return {_MEMORY_NAME.sub(rf".{DISK_PREFIX}\1", key): value for key, value in state_dict.items()}


def to_memory_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of :func:`to_disk_names`."""
    return {to_memory_name(key): value for key, value in state_dict.items()}


def is_monolora_name(key: str) -> bool:
    """Whether ``key`` (a name in a file) is that of A or B of a MonoLoRA adapter."""
    return _DISK_NAME.search(key) is not None


def to_memory_name(key: str) -> str:
    """``…monolora_A…`` to ``…lora_A…``; any other name stays."""
    return _DISK_NAME.sub(rf".{MEMORY_PREFIX}\1", key)


def is_unit_tensor(key: str, adapter_name: str) -> bool:
    """Whether ``key`` (a name in the model) belongs to A or B of this adapter, B's bias included."""
    return re.search(rf"\.lora_(embedding_)?[AB]\.{re.escape(adapter_name)}(\.|$)", key) is not None


def is_adapter_tensor(key: str, adapter_name: str) -> bool:
    """Whether ``key`` (a name in the model) is saved with this adapter: A, B, saved modules and trained tokens."""
    saved_beside = rf"\.(modules_to_save|trainable_tokens_delta)\.{re.escape(adapter_name)}(\.|$)"
    return is_unit_tensor(key, adapter_name) or re.search(saved_beside, key) is not None


def check_weights_file(folder: str) -> None:
    """Check that a local adapter folder holds a readable safetensors file; a folder without weights passes.

    Raises:
        AdapterFileError: if the weights are a pickle, or the safetensors file is cut off or foreign.
    """
    weights = os.path.join(folder, SAFETENSORS_WEIGHTS_NAME)
    pickle = os.path.join(folder, WEIGHTS_NAME)
    if os.path.isfile(weights):
        try:
            with safe_open(weights, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise AdapterFileError(
                f"{weights} is truncated or not a safetensors file ({error}). Copy it again from where it was saved."
            ) from error
    elif os.path.isfile(pickle):
        raise AdapterFileError(
            f"{pickle} is a pickle; MonoLoRA adapters are read from {SAFETENSORS_WEIGHTS_NAME} only. "
            "Save the adapter again with safe_serialization=True."
        )


def check_no_lora_tensors(keys: Iterable[str]) -> None:
    """Refuse plain LoRA tensors in a file whose config says MonoLoRA.

    Raises:
        AdapterFileError: naming the first one.
    """
    foreign = sorted(key for key in keys if _MEMORY_NAME.search(key))
    if foreign:
        raise AdapterFileError(
            f"Tensor {foreign[0]!r} belongs to a plain LoRA adapter, but the config says MONOLORA ({len(foreign)} such "
            "tensors). Set peft_type to LORA in adapter_config.json if that is what it is."
        )


def check_finite(state_dict: Mapping[str, torch.Tensor]) -> None:
    """Refuse NaN and infinity.

    Raises:
        AdapterFileError: naming the first such tensor.
    """
    for key, tensor in state_dict.items():
        if tensor.is_floating_point() and tensor.device.type != "meta" and not torch.isfinite(tensor).all():
            raise AdapterFileError(
                f"Tensor {key!r} has NaN or infinite values; the training run that wrote it diverged. Use an earlier "
                "checkpoint of it."
            )


def check_tensors(
    found: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Size],
    known: Iterable[str],
    trained_on: str | None,
    model_name: str | None,
) -> None:
    """Check the tensors of a file against the adapter they are for.

    Args:
        found: tensors of the file under the model's names.
        expected: shape of every tensor of the adapter, by the model's names.
        known: every name the model has, the base model's included (saved embeddings and biases).
        trained_on: the base model that the adapter's config records.
        model_name: where the model at hand comes from.

    Raises:
        AdapterFileError: naming the first missing, misshapen or foreign tensor, or one that is not finite.
    """
    origin = origin_of(trained_on, model_name)
    known = set(known)
    missing = sorted(expected.keys() - found.keys())
    foreign = sorted(key for key in found if key not in known)
    if missing or foreign:
        what = f"lacks tensor {missing[0]!r}" if missing else f"has the foreign tensor {foreign[0]!r}"
        raise AdapterFileError(f"The adapter file {what} ({len(missing)} missing, {len(foreign)} foreign). {origin}")
    for key, shape in expected.items():
        # A parameter that ZeRO-3 has partitioned shows no elements here; its shape cannot be compared.
        if shape.numel() and found[key].shape != shape:
            raise AdapterFileError(
                f"Tensor {key!r} has shape {tuple(found[key].shape)} in the file, this model needs {tuple(shape)}. "
                f"{origin}"
            )
    check_finite(found)


def same_model(trained_on: str | None, model_name: str | None) -> bool | None:
    """Whether two ids or paths of models end alike; None where one of them is not known."""
    if not trained_on or not model_name:
        return None
    return os.path.basename(os.path.normpath(trained_on)) == os.path.basename(os.path.normpath(model_name))


def origin_of(trained_on: str | None, model_name: str | None) -> str:
    """One sentence on whether adapter and model belong together, by their recorded ids."""
    same = same_model(trained_on, model_name)
    if same is None:
        return "Check that the adapter was trained on this base model, with the same target modules."
    if same:
        return f"Adapter and model both name {trained_on!r}; check the target modules and rank in adapter_config.json."
    return f"The adapter was trained on {trained_on!r}, this model is {model_name!r}: load it on the former."


def warn_of_other_base(trained_on: str | None, model_name: str | None) -> None:
    """Warn if an adapter that fits by its shapes was trained on a model of another name."""
    if same_model(trained_on, model_name) is False:
        warnings.warn(f"{origin_of(trained_on, model_name)} Its shapes fit both.", stacklevel=2)
