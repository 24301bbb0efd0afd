"""A LoRA adapter as a GGUF file, which llama.cpp puts on the base model's (``llama-cli --lora``).

For each adapted matrix the file has ``NAME.lora_a`` (rank, in) and ``NAME.lora_b`` (out, rank); llama.cpp adds
``alpha / rank · B A``, with one alpha for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gguf import GGML_QUANT_VERSION, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer

from monolora.activations import activation_named
from monolora.errors import InputError, unknown
from monolora.export.gguf import (
    TYPES,
    add_tensor_info,
    architecture_of,
    as_in_checkpoint,
    in_layout,
    stored_as,
    tensor_name,
)
from monolora.layer import MonoLoraLayer, bare_weight

_ALPHA = "adapter.lora.alpha"


class _Map(NamedTuple):
    """An adapter on one matrix: ``scaling * B A``.

    Shapes: A ``(rank, in)``, B ``(out, rank)``; both are the model's own.
    """

    A: torch.Tensor
    B: torch.Tensor
    scaling: float


def write_gguf_lora(model: PeftModel, folder: str, file: Path, kind: str) -> None:
    """Write the active adapter as a GGUF file.

    Args:
        model: with a LoRA adapter, or a MonoLoRA adapter whose activation is the identity, on linear layers.
        folder: of the adapter, for messages.
        file: to write.
        kind: type of the matrices: ``f32``, ``f16``, ``bf16`` or ``q8_0``.

    Raises:
        InputError: for a model that has no layout here, for an adapter that is no sum of such matrices, as one that
            keeps an activation, and for an unknown type.
        OSError: if the file cannot be written.
    """
    if kind not in TYPES:
        raise unknown("--types", kind, TYPES)
    config: Any = model.get_base_model().config
    architecture = architecture_of(config, folder)
    maps = dict(_maps(model, folder))
    alphas = {entry.scaling * len(entry.A) for entry in maps.values()}
    alpha = alphas.pop() if len(alphas) == 1 else 1.0
    tensors: list[tuple[str, torch.Tensor, GGMLQuantizationType]] = []
    for name, (A, B, scaling) in maps.items():
        target = tensor_name(f"{name}.weight", config, architecture, folder)
        rows = in_layout(B.float(), f"{name}.weight", config, architecture) * (scaling * len(A) / alpha)
        for end, tensor in (("lora_a", A.float()), ("lora_b", rows)):
            tensors.append((f"{target}.{end}", tensor, stored_as(tuple(tensor.shape), TYPES[kind].matrices)))
    writer = GGUFWriter(file, MODEL_ARCH_NAMES[architecture.arch])
    try:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_name(Path(folder).resolve().name)
        writer.add_file_type(TYPES[kind].file)
        writer.add_quantization_version(GGML_QUANT_VERSION)
        writer.add_float32(_ALPHA, alpha)
        for name, tensor, of_tensor in tensors:
            add_tensor_info(writer, name, tuple(tensor.shape), of_tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, tensor, of_tensor in tensors:
            writer.write_tensor_data(quantize(tensor.contiguous().cpu().numpy(), of_tensor))
    finally:
        writer.close()


@torch.no_grad()
def adopt_gguf_lora(model: PeftModel, folder: str, file: Path) -> None:
    """Give the active adapter the matrices of a file that :func:`write_gguf_lora` wrote from it.

    Args:
        model: as there; its A and B are replaced.
        folder: of the adapter, for messages.
        file: to read.

    Raises:
        InputError: as there.
    """
    config: Any = model.get_base_model().config
    architecture = architecture_of(config, folder)
    reader = GGUFReader(file)
    alpha = float(reader.fields[_ALPHA].contents())
    found = {tensor.name: torch.tensor(dequantize(tensor.data, tensor.tensor_type)) for tensor in reader.tensors}
    for name, (A, B, scaling) in _maps(model, folder):
        target = tensor_name(f"{name}.weight", config, architecture, folder)
        rows = as_in_checkpoint(found[f"{target}.lora_b"], f"{name}.weight", config, architecture)
        A.copy_(found[f"{target}.lora_a"])
        B.copy_(rows * (alpha / len(A) / scaling))


def _maps(model: PeftModel, folder: str) -> Iterator[tuple[str, _Map]]:
    """By the names of the adapted modules in the base model.

    Raises:
        InputError: for what is no such map.
    """
    adapter = model.active_adapter
    base: Any = model.get_base_model()
    others = set(get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False))
    for name, layer in base.named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in layer.lora_A:
            continue
        activation = layer.activation[adapter] if isinstance(layer, MonoLoraLayer) else None
        if activation is not None and not activation_named(activation).is_linear:
            raise InputError(
                f"{folder} keeps the activation {activation}, and a LoRA adapter in a GGUF file is linear. Merge it "
                f"into one first: monolora merge {folder} {folder}-lora --as lora; then export {folder}-lora."
            )
        if name == "lm_head" and base.config.tie_word_embeddings:
            raise InputError(f"{folder} adapts lm_head, which a GGUF file of this model has not. {_MERGE}")
        others -= {
            f"base_model.model.{name}.{kind}_{matrix}.weight" for kind in ("lora", "monolora") for matrix in "AB"
        }
        A, B = (bare_weight(matrices[adapter]) for matrices in (layer.lora_A, layer.lora_B))
        if A is None or B is None or A.dim() != 2:
            raise InputError(f"{folder} adapts {name}, which is no linear layer. {_MERGE}")
        yield name, _Map(A.data, B.data, layer.scaling[adapter])
    if others:
        raise InputError(
            f"{folder} trains {min(others).removeprefix('base_model.model.')} too, which a LoRA adapter in a GGUF file "
            f"has no place for. {_MERGE}"
        )


_MERGE = "Merge it into a checkpoint (monolora merge), and export that."
