"""The files of an exact checkpoint, checked before they are loaded.

transformers fills what they lack with noise, and where there is a quantizer it takes any shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from monolora.checkpoint import DISK_PREFIX, AdapterFileError, check_finite


def check_unit_tensors(model: PreTrainedModel, files: Iterable[str]) -> None:
    """Check that the files hold every A and B of a model with baked layers, in their shapes, and no NaN in them.

    Args:
        model: with baked layers, their tensors still empty.
        files: safetensors; none where the weights come from elsewhere.

    Raises:
        AdapterFileError: naming the first missing, misshapen or non-finite tensor, or the file that cannot be read.
    """
    files = list(files)
    if not files:
        return
    missing = {name: tensor.shape for name, tensor in model.state_dict().items() if _is_of_units(name)}
    rename = _Renaming(model)
    for file in files:
        for key, tensor in _unit_tensors(file):
            check_finite({key: tensor})
            # Tensors of a head that this class does not have are not looked at.
            shape = missing.pop(rename(key), tensor.shape)
            if tensor.shape != shape:
                raise AdapterFileError(
                    f"Tensor {key!r} has shape {tuple(tensor.shape)} in the file, config.json says {tuple(shape)}. "
                    "Copy both again, or export again."
                )
    if missing:
        raise AdapterFileError(
            f"The checkpoint lacks tensor {min(missing)!r} ({len(missing)} missing), a part of its MonoLoRA adapter. "
            "Copy all its files again, or export it again."
        )


def _is_of_units(name: str) -> bool:
    return name.rpartition(".")[2].startswith(DISK_PREFIX)


def _unit_tensors(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """A's and B's of one file, by their names there."""
    try:
        with safe_open(path, framework="pt") as file:
            for key in filter(_is_of_units, file.keys()):
                yield key, file.get_tensor(key)
    except SafetensorError as error:
        raise AdapterFileError(
            f"{path} is truncated or not a safetensors file ({error}). Copy it again from where it was saved."
        ) from error


class _Renaming:
    """From a name in the files to the name in the model, as transformers goes from one to the other when it loads."""

    def __init__(self, model: PreTrainedModel) -> None:
        mapping = get_model_conversion_mapping(model)
        self.renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self.converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self.prefix, self.state = model.base_model_prefix, model.state_dict()

    def __call__(self, key: str) -> str:
        return rename_source_key(key, self.renamings, self.converters, self.prefix, self.state)[0]
