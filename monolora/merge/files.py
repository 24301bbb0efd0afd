"""The files of an exact checkpoint, checked before they are loaded.

transformers initializes missing tensors at random and, with a quantizer, accepts any shape.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from monolora.checkpoint import DISK_PREFIX, AdapterFileError, check_finite

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# As safetensors names them.
_FLOAT_KINDS = ("F32", "BF16", "F16", "F64")


def check_tensors(model: PreTrainedModel, files: Iterable[str], elsewhere: Sequence[str] = ()) -> None:
    """Check that the files hold every A and B of a model with baked layers, once, and nothing that contradicts it.

    Args:
        model: with baked layers, their tensors still empty.
        files: safetensors; none where the weights come from elsewhere.
        elsewhere: modules that keep units too, of a head that this class does not have.

    Raises:
        AdapterFileError: naming the first tensor that is missing, foreign, duplicate, of another shape, of a dtype
            that no export writes, or not finite; or the file that cannot be read.
    """
    files = list(files)
    if not files:
        return
    state = model.state_dict()
    missing = {name for name in state if _is_of_units(name)}
    without_tensors = set(elsewhere)
    seen: set[str] = set()
    rename = _Renaming(model)
    for file in files:
        for key, tensor, read in _tensors(file):
            name, is_converted = rename(key)
            # A parameter that ZeRO-3 has partitioned shows no elements here; its shape cannot be compared.
            expected = state[name].shape if name in state and not is_converted and state[name].numel() else None
            if (expected is not None or _is_of_units(key)) and tensor.get_dtype() not in _FLOAT_KINDS:
                raise AdapterFileError(f"Tensor {key!r} is of dtype {tensor.get_dtype()}, not of floats. {_AGAIN}")
            if expected is not None and torch.Size(tensor.get_shape()) != expected:
                raise AdapterFileError(
                    f"Tensor {key!r} has shape {tuple(tensor.get_shape())} in the file, config.json says "
                    f"{tuple(expected)}. {_AGAIN}"
                )
            if not _is_of_units(key):
                continue
            check_finite({key: read()})
            owners = {module for module in elsewhere if _same_head(module, name.rpartition(".")[0])}
            if name in seen or (name not in missing and not owners):
                what = "twice" if name in seen else "of a module that config.json does not name so"
                raise AdapterFileError(f"Tensor {key!r} of {file} is there {what}. {_AGAIN}")
            seen.add(name)
            missing.discard(name)
            without_tensors -= owners
    missing |= {f"{module}.{DISK_PREFIX}A" for module in without_tensors}
    if missing:
        raise AdapterFileError(
            f"The checkpoint lacks tensor {min(missing)!r} ({len(missing)} missing), a part of its MonoLoRA adapter. "
            "Copy all its files again, or export it again."
        )


_AGAIN = "Copy all files of the checkpoint again, or export again."


def weight_files(folder: Path) -> list[str]:
    """The files that the weights of a checkpoint are in: those of its index, or the only one."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return [str(path) for path in (folder / SAFE_WEIGHTS_NAME,) if path.is_file()]
    return [str(folder / name) for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def _is_of_units(name: str) -> bool:
    return name.rpartition(".")[2].startswith(DISK_PREFIX)


def _same_head(module: str, in_file: str) -> bool:
    """Whether both name one module of a head: on disk it may have another prefix."""
    return module == in_file or module.endswith(f".{in_file}") or in_file.endswith(f".{module}")


def _tensors(path: str) -> Iterator[tuple[str, Any, Callable[[], torch.Tensor]]]:
    """Name, header and reader of each tensor in one file."""
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                yield key, file.get_slice(key), partial(file.get_tensor, key)
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(
            f"{path} is truncated or not a safetensors file ({error}). Copy it again from where it was saved."
        ) from error


class _Renaming:
    """From names in the files to names in the model, as transformers maps them while loading."""

    def __init__(self, model: PreTrainedModel) -> None:
        mapping = get_model_conversion_mapping(model)
        self.renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self.converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self.prefix, self.state = model.base_model_prefix, model.state_dict()

    def __call__(self, key: str) -> tuple[str, bool]:
        """The name, and whether the tensor becomes a part of another one."""
        name, pattern = rename_source_key(key, self.renamings, self.converters, self.prefix, self.state)
        return name, pattern is not None
