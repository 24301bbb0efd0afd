"""Adapter files: the names of their tensors, and the checks that no loader may skip.

On disk the tensors are called ``monolora_A`` and ``monolora_B`` (``monolora_embedding_A/B`` for embeddings), and
``monolora_threshold`` where the activation has one,
so that a loader for plain LoRA fails instead of silently dropping the activation. In memory they keep LoRA's names,
because PEFT handles them.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from monolora.errors import InputError

MEMORY_PREFIX = "lora_"
DISK_PREFIX = "monolora_"
# A tensor's role is the last of its name, before the adapter's name where there is one: a module of the base, and an
# adapter, may well be called lora_A themselves.
_ROLE = r"\.{prefix}((?:embedding_)?[AB]|threshold)(?={adapter}(?:\.weight|\.bias)?$)"
_MEMORY_NAME = re.compile(_ROLE.format(prefix=MEMORY_PREFIX, adapter=""))
_DISK_NAME = re.compile(_ROLE.format(prefix=DISK_PREFIX, adapter=""))
_DTYPES = ("F16", "BF16", "F32", "F64")


class AdapterFileError(InputError):
    """An adapter file that must not be loaded; the message names the tensor or the file, and the fix."""


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
    """Whether ``key`` (a name in a file) is that of A, B or the threshold of a MonoLoRA adapter."""
    return _DISK_NAME.search(key) is not None


def is_unit_tensor(key: str, adapter_name: str | None) -> bool:
    """Whether ``key`` (a name in the model) belongs to the units of this adapter: A, B, B's bias, the threshold."""
    adapter = "" if adapter_name is None else rf"\.{re.escape(adapter_name)}"
    return re.search(_ROLE.format(prefix=MEMORY_PREFIX, adapter=adapter), key) is not None


def module_of(key: str, adapter_name: str) -> tuple[str, str]:
    """Module and rest of a name in the model of a unit tensor of this adapter; of any other name, ``("", key)``."""
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


def model_name(model: nn.Module) -> str | None:
    """Path or hub id that a transformers model was loaded from; None for other models."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return base.name_or_path if isinstance(base, PreTrainedModel) else None


def same_model(trained_on: str | None, loaded_from: str | None) -> bool | None:
    """Whether two ids or paths of models end alike; None where one of them is not known."""
    if not trained_on or not loaded_from:
        return None
    return os.path.basename(os.path.normpath(trained_on)) == os.path.basename(os.path.normpath(loaded_from))


def origin_of(trained_on: str | None, loaded_from: str | None) -> str:
    """One sentence on whether adapter and model belong together, by their recorded ids."""
    same = same_model(trained_on, loaded_from)
    if same is None:
        return "Check that the adapter was trained on this base model, with the same target modules."
    if same:
        return f"Adapter and model both name {trained_on!r}; check the target modules and rank in adapter_config.json."
    return f"The adapter was trained on {trained_on!r}, this model is {loaded_from!r}: load it on the former."


def warn_of_other_base(trained_on: str | None, loaded_from: str | None) -> None:
    """Warn if an adapter that fits by its shapes was trained on a model of another name."""
    if same_model(trained_on, loaded_from) is False:
        warnings.warn(f"{origin_of(trained_on, loaded_from)} Its shapes fit both.", stacklevel=2)


# Rounding to bfloat16 and back, twice: a base may have been trained on and loaded in different formats.
_RELATIVE, _ABSOLUTE = 2.0**-7, 2.0**-24


class Room(NamedTuple):
    """The tensors that an adapter file may hold for a model, by their names in the file.

    Attributes:
        own: tensors of the adapter, all of which a file must hold.
        biases: of the base, where the adapter's config asks for them: which a file may hold.
        frozen: tensors of the base's embeddings, which a file may hold.
        copies: names of copies that a file may hold, to the names in ``own`` that they are copies of.
        base_rows: rows of the base's embeddings before they were resized; None where that is not known.
    """

    own: Mapping[str, torch.Tensor]
    biases: Mapping[str, torch.Tensor]
    frozen: Mapping[str, torch.Tensor]
    copies: Mapping[str, str]
    base_rows: int | None


def room_for(
    model: Any,
    adapter_name: str,
    in_model: Mapping[str, torch.Tensor],
    own: Iterable[str],
    file_names: Mapping[str, str] | None = None,
) -> Room:
    """The room that a model has for the tensors of an adapter.

    Args:
        model: the adapted model, whether PEFT or transformers put the adapter into it.
        adapter_name: the adapter's name there.
        in_model: the model's state dict.
        own: the model's names of the adapter's tensors.
        file_names: these to the names to look for, where they are others.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    names = {key: file_names[key] if file_names else key for key in own}
    named = {name: in_model[key] for key, name in names.items()}
    # Those of modules that pruning has taken the adapter from are trained too.
    trained = vars(model.peft_config[adapter_name]).get("bias", "none") != "none"
    biases = {key: value for key, value in in_model.items() if trained and key.endswith(".bias")}
    if not isinstance(base, PreTrainedModel):
        return Room(named, biases, {}, {}, None)
    embeddings = (base.get_input_embeddings(), base.get_output_embeddings())
    prefixes = tuple(f"{name}." for name, module in model.named_modules() if module in embeddings)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    by_parameter = {id(parameters[key]): key for key in names if key in parameters}
    frozen, copies = {}, {}
    for key, value in in_model.items():
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        if prefix is None:
            continue
        original = key if key in names else by_parameter.get(id(parameters.get(key)))
        name = file_name(key, adapter_name)
        if original is not None:
            copies[name] = names[original]
        elif not set(key.removeprefix(prefix).split(".")) & set(model.peft_config):
            frozen[key] = value
    copies = {copy: name for copy, name in copies.items() if copy != name}
    return Room(named, biases, frozen, copies, _base_rows(base))


def saved_beside(model: nn.Module, adapter_name: str) -> dict[str, str]:
    """Saved modules and trained tokens of an adapter: the model's names of their tensors to those in the file."""
    return {
        f"{name}.{in_model}": f"{name}.{in_file}"
        for name, module in model.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
        for in_file, in_model in module.adapter_state_dict_load_map(adapter_name).items()
    }


def check_saved_beside(tensors: Mapping[str, torch.Tensor], model: nn.Module, adapter_name: str) -> None:
    """Check that a file holds the saved modules and trained tokens of an adapter.

    Raises:
        AdapterFileError: naming the first that it lacks, as it is called in the model.
    """
    for in_model, in_file in saved_beside(model, adapter_name).items():
        if in_file not in tensors:
            raise AdapterFileError(
                f"The adapter file lacks tensor {in_model!r}. Copy it again from where it was saved."
            )


def file_name(key: str, adapter_name: str) -> str:
    """A name in the model without the adapter's, as PEFT writes it into a file."""
    head, _, last = key.rpartition(".")
    if last == adapter_name:
        return head
    return f"{head.removesuffix(f'.{adapter_name}')}.{last}"


def _base_rows(base: PreTrainedModel) -> int | None:
    """Rows of the embeddings in the files that the model was loaded from."""
    if not base.config.name_or_path:
        return None
    try:
        config = type(base.config).from_pretrained(base.config.name_or_path, local_files_only=True)
    except (OSError, ValueError):
        return None
    return int(config.get_text_config(decoder=True).vocab_size)


def vocabulary_in(folder: str, model: PreTrainedModel) -> int | None:
    """Rows of the embeddings in the file of an adapter folder; None where it holds none.

    Args:
        folder: local.
        model: the base that it is for, which names its embeddings.
    """
    weights = Path(folder) / SAFETENSORS_WEIGHTS_NAME
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [re.escape(name) for name, module in model.named_modules() if module in embeddings]
    wrapped = r"(?:(?:token_adapter\.)?base_layer\.|original_module\.)?"
    pattern = re.compile(rf"base_model\.model\.(?:{'|'.join(names)})\.{wrapped}weight")
    with safe_open(weights, framework="pt") as file:
        rows = [file.get_slice(key).get_shape()[0] for key in file.keys() if pattern.fullmatch(key)]  # noqa: SIM118
    return rows[0] if rows else None


def is_resized(model: PreTrainedModel) -> bool:
    """Whether the vocabulary is of another size than in the files that the model was loaded from."""
    return _base_rows(model) not in (None, model.config.get_text_config(decoder=True).vocab_size)


def check_tensors(tensors: Mapping[str, torch.Tensor], room: Room, origin: str) -> dict[str, torch.Tensor]:
    """Check the tensors of a file against the model that they are for.

    Args:
        tensors: of the file, by the names of ``room``.
        room: what the model has room for.
        origin: a sentence on whether file and model belong together.

    Returns:
        What is to be loaded: ``tensors`` without copies.

    Raises:
        AdapterFileError: naming the first missing, misshapen or foreign tensor, one of another type, one that is not
            finite, or one that would change the base model.
    """
    missing = sorted(room.own.keys() - tensors.keys())
    foreign = sorted(tensors.keys() - room.own.keys() - room.biases.keys() - room.frozen.keys() - room.copies.keys())
    if missing or foreign:
        what = f"lacks tensor {missing[0]!r}" if missing else f"has the foreign tensor {foreign[0]!r}"
        raise AdapterFileError(f"The adapter file {what} ({len(missing)} missing, {len(foreign)} foreign). {origin}")
    for key, needed in {**room.frozen, **room.biases, **room.own}.items():
        if key not in tensors:
            continue
        tensor = tensors[key]
        # A parameter that ZeRO-3 has partitioned shows no elements here; its shape cannot be compared.
        if needed.shape.numel() and tensor.shape != needed.shape:
            hint = f"Resize the model's embeddings to {len(tensor)} rows first." if key in room.frozen else origin
            raise AdapterFileError(
                f"Tensor {key!r} has shape {tuple(tensor.shape)} in the file, this model needs {tuple(needed.shape)}. "
                f"{hint}"
            )
        _check_kind(key, tensor, needed)
    check_finite(tensors)
    for copy, name in room.copies.items():
        if copy in tensors and not torch.equal(tensors[copy], tensors[name]):
            raise AdapterFileError(f"The adapter file holds {name!r} twice, and {copy!r} differs. {origin}")
    left_out = set(room.copies)
    for key in sorted(room.frozen.keys() & tensors.keys()):
        if room.frozen[key].device.type == "meta":  # offloaded, and of the base's own size: the base has it already
            left_out.add(key)
        else:
            _check_rows(key, tensors[key], room.frozen[key], room.base_rows)
    return {key: tensor for key, tensor in tensors.items() if key not in left_out}


def _check_kind(key: str, tensor: torch.Tensor, needed: torch.Tensor) -> None:
    floating = needed.is_floating_point() and tensor.is_floating_point() and tensor.dtype.itemsize > 1
    if not floating and tensor.dtype != needed.dtype:
        raise AdapterFileError(
            f"Tensor {key!r} is of type {str(tensor.dtype).removeprefix('torch.')}, where this model has "
            f"{str(needed.dtype).removeprefix('torch.')}. Save the adapter again in bfloat16 or float32."
        )


def _check_rows(key: str, tensor: torch.Tensor, base: torch.Tensor, base_rows: int | None) -> None:
    """Check that weights that PEFT freezes, and the config does not name, equal the base model's."""
    rows = slice(base_rows)
    ours, theirs = base[rows].float(), tensor[rows].float().to(base.device)
    if base.numel() and not torch.allclose(theirs, ours, rtol=_RELATIVE, atol=_ABSOLUTE):
        raise AdapterFileError(
            f"Tensor {key!r} would overwrite a weight of the base model, and adapter_config.json does not name it in "
            "modules_to_save. Do not load this file unless you know its origin; then name the module there."
        )
