"""A checkpoint as a GGUF file, the format of llama.cpp, Ollama and LM Studio.

The layout is that of the GGUF specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); names of
tensors, writing and quantization are the package ``gguf``'s. Tensors are read, converted and written one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import (
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFReader,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
    get_tensor_name_map,
)
from gguf.quants import dequantize, quant_shape_to_byte_shape, quantize
from safetensors import safe_open
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from monolora.errors import InputError, unknown
from monolora.export.gguf_tokenizer import ELSEWHERE, add_tokenizer
from monolora.hub import load_config, load_tokenizer


class _Type(NamedTuple):
    """A type of weights: of matrices, and of the file; vectors are always float32."""

    matrices: GGMLQuantizationType
    file: LlamaFileType


TYPES = {
    "f32": _Type(GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": _Type(GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": _Type(GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": _Type(GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


class Architecture(NamedTuple):
    """How GGUF has a model type of transformers, and what llama.cpp computes for it.

    Attributes:
        arch: the package's name of it.
        rotates_pairs: whether neighbouring dimensions of queries and keys rotate together, where transformers rotates
            the two halves of a head.
        adds_one: whether transformers adds one to the weights of norms, which the file then has in them.
        activation: of the feed-forward layers.
        full_every: which layer attends to all tokens, the others to a window: every second, every sixth; None where
            there are no windows.
        own_scale: number of layers of the size whose queries are scaled by the width over the heads, not by a head's.
        rope_types: of position embeddings.
    """

    arch: MODEL_ARCH
    rotates_pairs: bool = False
    adds_one: bool = False
    activation: str = "silu"
    full_every: int | None = None
    own_scale: int = 0
    rope_types: tuple[str, ...] = ("default", "linear")


_LLAMA = Architecture(MODEL_ARCH.LLAMA, rotates_pairs=True, rope_types=("default", "linear", "llama3"))
_GELU = "gelu_pytorch_tanh"
ARCHITECTURES = {
    "llama": _LLAMA,  # SmolLM, TinyLlama and others too
    "mistral": _LLAMA,
    "qwen2": Architecture(MODEL_ARCH.QWEN2),
    "qwen3": Architecture(MODEL_ARCH.QWEN3),
    "phi3": Architecture(MODEL_ARCH.PHI3, rope_types=("default", "longrope")),
    "gemma": Architecture(MODEL_ARCH.GEMMA, adds_one=True, activation=_GELU),
    "gemma2": Architecture(MODEL_ARCH.GEMMA2, adds_one=True, activation=_GELU, full_every=2, own_scale=46),
    "gemma3_text": Architecture(MODEL_ARCH.GEMMA3, adds_one=True, activation=_GELU, full_every=6, own_scale=62),
}


def write_gguf(folder: str, file: Path, kind: str) -> None:
    """Write a checkpoint's weights, tokenizer and chat template as a GGUF file.

    Args:
        folder: of a dense checkpoint with safetensors files.
        file: to write.
        kind: type of the matrices: ``f32``, ``f16``, ``bf16`` or ``q8_0``.

    Raises:
        InputError: for a model or tokenizer that has no layout here, and for an unknown type.
        OSError: if the file cannot be written.
    """
    if kind not in TYPES:
        raise unknown("--types", kind, TYPES)
    config = load_config(folder)
    architecture = architecture_of(config, folder)
    _check_computed(config, architecture, folder)
    writer = GGUFWriter(file, MODEL_ARCH_NAMES[architecture.arch])
    try:
        _add_config(writer, config, architecture, TYPES[kind], Path(folder).resolve().name)
        add_tokenizer(writer, load_tokenizer(folder), folder, config.vocab_size)
        _write_tensors(writer, folder, config, architecture, TYPES[kind].matrices)
    finally:
        writer.close()


def architecture_of(config: PreTrainedConfig, folder: str) -> Architecture:
    """How GGUF has the model of a config.

    Args:
        config: of the model.
        folder: that it is from, for messages.

    Raises:
        InputError: for a type that has no layout here.
    """
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"{folder}: models of type {config.model_type} are not exported; {known} are. {ELSEWHERE}")
    return architecture


def _check_computed(config: PreTrainedConfig, architecture: Architecture, folder: str) -> None:
    """Check that llama.cpp computes what the config says, where no field of the file could say otherwise.

    Raises:
        InputError: naming what it computes otherwise.
    """
    layers = config.num_hidden_layers
    given = config.hidden_size // config.num_attention_heads if layers == architecture.own_scale else _head_size(config)
    windows = [
        "sliding_attention" if architecture.full_every and (layer + 1) % architecture.full_every else "full_attention"
        for layer in range(layers)
    ]
    computed: tuple[tuple[str, Any, Sequence[Any]], ...] = (
        ("hidden_act", getattr(config, "hidden_activation", None) or config.hidden_act, [architecture.activation]),
        ("query_pre_attn_scalar", getattr(config, "query_pre_attn_scalar", given), [given]),
        ("use_bidirectional_attention", getattr(config, "use_bidirectional_attention", None), [None, False]),
        ("layer_types", config.layer_types if architecture.full_every else windows, [windows]),
        ("rope_type", _rope(config).get("rope_type", "default"), architecture.rope_types),
    )
    for name, theirs, ours in computed:
        if theirs not in ours:
            raise InputError(f"{folder}: models with {name} {theirs} are not exported. {ELSEWHERE}")


def _rope(config: PreTrainedConfig) -> dict[str, Any]:
    """Of the layers that attend to all tokens."""
    rope: dict[str, Any] = config.rope_parameters
    return rope.get("full_attention", rope)


def _add_config(
    writer: GGUFWriter, config: PreTrainedConfig, architecture: Architecture, kind: _Type, name: str
) -> None:
    head_size = _head_size(config)
    rope = _rope(config)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    context = config.max_position_embeddings
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(kind.file)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    # Without windows of its own, llama.cpp computes the same within the first.
    writer.add_context_length(context if architecture.full_every else min(context, window or context))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(int(head_size * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope.get("rope_type") == "longrope":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        writer.add_rope_scaling_attn_factors(ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"))[1])
    if architecture.full_every:
        writer.add_sliding_window(window or context)
        writer.add_rope_freq_base_swa(config.rope_parameters.get("sliding_attention", rope)["rope_theta"])
    elif architecture.arch == MODEL_ARCH.PHI3:
        writer.add_sliding_window(0)  # earlier versions of llama.cpp take the field's absence for another window
    for field, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if (cap := getattr(config, field, None)) is not None:
            add(cap)


def _head_size(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _write_tensors(
    writer: GGUFWriter, folder: str, config: PreTrainedConfig, architecture: Architecture, kind: GGMLQuantizationType
) -> None:
    """All tensors, in two passes: the file begins with their names and shapes.

    Raises:
        InputError: for a tensor that the layout has no place for.
    """
    tensors = list(_tensors(folder, config))
    targets = [tensor_name(name, config, architecture, folder) for _, name, _ in tensors]
    kinds = [stored_as(shape, kind) for _, _, shape in tensors]
    factors = _rope_factors(config)
    for target, factor in factors.items():
        writer.add_tensor_info(target, factor.shape, factor.dtype, factor.nbytes)
    for target, (_, _, shape), of_tensor in zip(targets, tensors, kinds, strict=True):
        add_tensor_info(writer, target, shape, of_tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for factor in factors.values():
        writer.write_tensor_data(factor)
    for (path, name, _), of_tensor in zip(tensors, kinds, strict=True):
        with safe_open(path, framework="pt") as file:
            tensor = in_layout(file.get_tensor(name).float(), name, config, architecture)
        writer.write_tensor_data(quantize(tensor.numpy(), of_tensor))


def tensor_name(name: str, config: PreTrainedConfig, architecture: Architecture, folder: str) -> str:
    """The name in a GGUF file of a tensor of the checkpoint.

    Raises:
        InputError: if the layout has no place for it.
    """
    target = _names(architecture.arch, config.num_hidden_layers).get_name(name, try_suffixes=(".weight", ".bias"))
    if target is None:
        raise InputError(f"{folder}: {name} has no place in a GGUF file of type {config.model_type}. {ELSEWHERE}")
    return str(target)


_names = cache(get_tensor_name_map)


def stored_as(shape: tuple[int, ...], kind: GGMLQuantizationType) -> GGMLQuantizationType:
    """The type of a tensor in a file whose matrices are of type ``kind``."""
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    return GGMLQuantizationType.F16 if kind == GGMLQuantizationType.Q8_0 and shape[-1] % 32 else kind


def add_tensor_info(writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> None:
    """Announce a tensor, whose data follows later."""
    stored = np.dtype({0: np.float32, 1: np.float16}.get(kind, np.uint8))
    bytes_shape = shape if stored != np.uint8 else quant_shape_to_byte_shape(shape, kind)
    writer.add_tensor_info(name, bytes_shape, stored, int(np.prod(bytes_shape)) * stored.itemsize, raw_dtype=kind)


def in_layout(tensor: torch.Tensor, name: str, config: PreTrainedConfig, architecture: Architecture) -> torch.Tensor:
    """A tensor of the checkpoint as the file has it; or its rows alone, as a LoRA adapter's B."""
    if architecture.rotates_pairs and (heads := _heads(name, config)):
        return _pairs(tensor, heads)
    return tensor + 1 if architecture.adds_one and name.endswith("norm.weight") else tensor


def _tensors(folder: str, config: PreTrainedConfig) -> Iterator[tuple[Path, str, tuple[int, ...]]]:
    """File, name and shape of each tensor; a tied output layer is left out."""
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                if not (name == "lm_head.weight" and config.tie_word_embeddings):
                    yield path, name, tuple(file.get_slice(name).get_shape())


def read_tensors(file: Path, folder: str) -> dict[str, torch.Tensor]:
    """The tensors in a file as those of the checkpoint that it was written from, by their names there.

    Raises:
        InputError: as :func:`write_gguf`.
    """
    config = load_config(folder)
    architecture = architecture_of(config, folder)
    found = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    tensors = {}
    for _, name, shape in _tensors(folder, config):
        stored = found[tensor_name(name, config, architecture, folder)]
        tensor = torch.tensor(dequantize(stored.data, stored.tensor_type)).reshape(shape)
        tensors[name] = as_in_checkpoint(tensor, name, config, architecture)
    return tensors


def as_in_checkpoint(
    tensor: torch.Tensor, name: str, config: PreTrainedConfig, architecture: Architecture
) -> torch.Tensor:
    """The inverse of :func:`in_layout`."""
    if architecture.rotates_pairs and (heads := _heads(name, config)):
        return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(tensor.shape)
    return tensor - 1 if architecture.adds_one and name.endswith("norm.weight") else tensor


def _heads(name: str, config: PreTrainedConfig) -> int:
    """Of a projection that is rotated; 0 for another tensor."""
    module = name.split(".")[-2]
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module, 0)


def _pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of which the halves of each head rotate together, with these pairs side by side."""
    halves = weight.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()


def _rope_factors(config: PreTrainedConfig) -> dict[str, np.ndarray]:
    """What each frequency is divided by, by the names of tensors; nothing where one number says it."""
    rope = _rope(config)
    if rope.get("rope_type") == "longrope":
        parts = {"long": "long_factor", "short": "short_factor"}
        return {f"rope_factors_{part}.weight": np.array(rope[key], np.float32) for part, key in parts.items()}
    if rope.get("rope_type") != "llama3":
        return {}
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = _head_size(config)
    plain = rope["rope_theta"] ** -(torch.arange(0, size, 2).double() / size)
    return {"rope_freqs.weight": (plain / scaled.double()).float().numpy()}
