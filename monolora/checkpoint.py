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
# A tensor's role is the last of its name, before the adapter's name where there is one: a module of the base, and an
# adapter, may well be called lora_A themselves.
_ROLE = r"\.{prefix}((?:embedding_)?[AB])(?={adapter}(?:\.weight|\.bias)?$)"
_MEMORY_NAME = re.compile(_ROLE.format(prefix=MEMORY_PREFIX, adapter=""))
_DISK_NAME = re.compile(_ROLE.format(prefix=DISK_PREFIX, adapter=""))
_DTYPES = ("F16", "BF16", "F32", "F64")


class AdapterFileError(InputError):
    """An adapter file that must not be loaded; the message names the tensor or the file, and the mend."""


def to_disk_name(key: str, adapter_name: str) -> str:
    """A name in the model to that on disk, the adapter's name still in it: ``…lora_A.x…`` to ``…monolora_A.x…``."""
    role = _ROLE.format(prefix=MEMORY_PREFIX, adapter=rf"\.{re.escape(adapter_name)}")
    return re.sub(role, rf".{DISK_PREFIX}\1", key)


def to_memory_name(key: str, adapter_name: str | None = None) -> str:
    """``…monolora_A…`` to ``…lora_A…``; any other name stays.

    Args:
        key: a name in a file.
        adapter_name: that of the adapter, where PEFT has put it into the name already.
    """
    adapter = "" if adapter_name is None else rf"\.{re.escape(adapter_name)}"
    return re.sub(_ROLE.format(prefix=DISK_PREFIX, adapter=adapter), rf".{MEMORY_PREFIX}\1", key)


def is_monolora_name(key: str) -> bool:
    """Whether ``key`` (a name in a file) is that of A or B of a MonoLoRA adapter."""
    return _DISK_NAME.search(key) is not None


def is_unit_tensor(key: str, adapter_name: str | None) -> bool:
    """Whether ``key`` (a name in the model) belongs to A or B of this adapter, B's bias included."""
    adapter = "" if adapter_name is None else rf"\.{re.escape(adapter_name)}"
    return re.search(_ROLE.format(prefix=MEMORY_PREFIX, adapter=adapter), key) is not None


def module_of(key: str, adapter_name: str) -> tuple[str, str]:
    """Module and rest of a name in the model of A or B of this adapter; of any other name, ``("", key)``."""
    role = re.search(_ROLE.format(prefix=MEMORY_PREFIX, adapter=rf"\.{re.escape(adapter_name)}"), key)
    return ("", key) if role is None else (key[: role.start()], key[role.start() + 1 :])


def adapted_modules(folder: str) -> tuple[str, ...]:
    """The modules for which the file of a local adapter folder, LoRA or MonoLoRA, has an A; none without a file."""
    weights = os.path.join(folder, SAFETENSORS_WEIGHTS_NAME)
    if not os.path.isfile(weights):
        return ()
    with safe_open(weights, framework="pt") as file:
        names = [re.sub(_DISK_NAME, rf".{MEMORY_PREFIX}\1", key) for key in file.keys()]  # noqa: SIM118 (no mapping)
    matches = (
        re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_(?:embedding_)?A(?:\.weight)?", name) for name in names
    )
    return tuple(sorted({match[1] for match in matches if match}))


def check_weights_file(folder: str) -> None:
    """Check that a local adapter folder holds a readable safetensors file; a folder without weights passes.

    Raises:
        AdapterFileError: if the weights are a pickle, the safetensors file is cut off or foreign, or an A or B of it
            holds no floating-point numbers.
    """
    weights = os.path.join(folder, SAFETENSORS_WEIGHTS_NAME)
    pickle = os.path.join(folder, WEIGHTS_NAME)
    if os.path.isfile(weights):
        try:
            with safe_open(weights, framework="pt") as file:
                names = [key for key in file.keys() if _DISK_NAME.search(key) or _MEMORY_NAME.search(key)]  # noqa: SIM118
                dtypes = {key: file.get_slice(key).get_dtype() for key in names}
        except (SafetensorError, OSError) as error:
            raise AdapterFileError(
                f"{weights} is truncated or not a safetensors file ({error}). Copy it again from where it was saved."
            ) from error
        for key, dtype in dtypes.items():
            if dtype not in _DTYPES:
                raise AdapterFileError(
                    f"Tensor {key!r} in {weights} is of type {dtype}, not one of {', '.join(_DTYPES)}: no adapter is "
                    "trained in it. Save the adapter again in bfloat16 or float32."
                )
    elif os.path.isfile(pickle):
        raise AdapterFileError(
            f"{pickle} is a pickle; MonoLoRA adapters are read from {SAFETENSORS_WEIGHTS_NAME} only. "
            "Save the adapter again with safe_serialization=True."
        )


def check_no_lora_tensors(keys: Iterable[str], adapter_name: str | None = None) -> None:
    """Refuse plain LoRA tensors in a file whose config says MonoLoRA.

    Args:
        keys: names in the file.
        adapter_name: that of the adapter, where PEFT has put it into the names already.

    Raises:
        AdapterFileError: naming the first one.
    """
    foreign = sorted(key for key in keys if is_unit_tensor(key, adapter_name))
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
