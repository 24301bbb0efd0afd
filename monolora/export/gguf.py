"""A checkpoint as a GGUF file, the format of llama.cpp, Ollama and LM Studio.

The layout is that of the GGUF specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); names of
tensors, writing and quantization are the package ``gguf``'s. Tensors are read, converted and written one by one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import (
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
    TokenType,
    get_tensor_name_map,
)
from gguf.quants import quant_shape_to_byte_shape, quantize
from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from monolora.errors import InputError, unknown
from monolora.hub import load_config, load_tokenizer
from monolora.model_files import end_tokens


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


class _Architecture(NamedTuple):
    """How GGUF has a model type of transformers.

    Attributes:
        arch: the package's name of it.
        rotates_pairs: whether neighbouring dimensions of queries and keys rotate together, where transformers rotates
            the two halves of a head.
    """

    arch: MODEL_ARCH
    rotates_pairs: bool = False


ARCHITECTURES = {
    "llama": _Architecture(MODEL_ARCH.LLAMA, rotates_pairs=True),  # SmolLM, TinyLlama and others too
    "mistral": _Architecture(MODEL_ARCH.LLAMA, rotates_pairs=True),
    "qwen2": _Architecture(MODEL_ARCH.QWEN2),
    "qwen3": _Architecture(MODEL_ARCH.QWEN3),
}
_ELSEWHERE = "Convert the checkpoint with llama.cpp's convert_hf_to_gguf.py."
# What splits a text before byte pairs are merged, as tokenizer.json has it, and its name in llama.cpp.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = {"gpt2": "gpt-2", "digits, gpt2": "smollm", _WORDS % "{1,3}": "llama-bpe", _WORDS % "": "qwen2"}


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
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"{folder}: models of type {config.model_type} are not exported; {known} are. {_ELSEWHERE}")
    writer = GGUFWriter(file, MODEL_ARCH_NAMES[architecture.arch])
    try:
        _add_config(writer, config, TYPES[kind], Path(folder).resolve().name)
        _add_tokenizer(writer, load_tokenizer(folder), folder, config)
        _write_tensors(writer, folder, config, architecture, TYPES[kind].matrices)
    finally:
        writer.close()


def _add_config(writer: GGUFWriter, config: PreTrainedConfig, kind: _Type, name: str) -> None:
    head_size = _head_size(config)
    rope = config.rope_parameters
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(kind.file)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    scaling = rope.get("rope_type", "default")
    if scaling == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif scaling not in ("default", "llama3"):
        raise InputError(f"Position embeddings scaled as {scaling} are not exported. {_ELSEWHERE}")
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and window < config.max_position_embeddings:
        raise InputError(f"Attention in sliding windows ({window} tokens) is not exported. {_ELSEWHERE}")


def _head_size(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _add_tokenizer(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, folder: str, config: PreTrainedConfig
) -> None:
    """Of byte pairs, as GPT-2's, Llama 3's and Qwen's.

    Raises:
        InputError: for one of another kind, or that splits texts in a way that has no name.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    saved = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    model, added = saved["model"], {entry["id"]: entry for entry in saved.get("added_tokens", ())}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise InputError(f"The tokenizer of {folder} is none of byte pairs, and is not exported. {_ELSEWHERE}")
    by_id = {number: token for token, number in model["vocab"].items()} | {
        number: entry["content"] for number, entry in added.items()
    }
    tokens, types = [], []
    for number in range(config.vocab_size):
        tokens.append(by_id.get(number, f"[PAD{number}]"))
        types.append(_token_type(number in by_id, added.get(number)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(saved, folder))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    special: tuple[tuple[Any, int | None], ...] = (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, _end_token(tokenizer, folder)),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    )
    for add, token in special:
        if token is not None and token < config.vocab_size:
            add(token)
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(begins)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.get_chat_template())


def _token_type(is_known: bool, added: Mapping[str, Any] | None) -> TokenType:
    if not is_known:
        return TokenType.UNUSED
    if added is None:
        return TokenType.NORMAL
    return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED


def _end_token(tokenizer: PreTrainedTokenizerBase, folder: str) -> int | None:
    """The one that answers end with: of the generation config where it has one, else the tokenizer's."""
    ends = end_tokens(folder)
    return tokenizer.eos_token_id if not ends or tokenizer.eos_token_id in ends else ends[0]


def _pre_tokenizer(saved: Mapping[str, Any], folder: str) -> str:
    """llama.cpp's name of how texts are split.

    Raises:
        InputError: if it has none that is known here.
    """
    pre = saved.get("pre_tokenizer") or {}
    steps = pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]
    described = []
    for step in steps:
        if step.get("type") == "ByteLevel":
            described += ["gpt2"] if step.get("use_regex", True) else []
        elif step.get("type") == "Digits" and step.get("individual_digits"):
            described.append("digits")
        elif step.get("type") == "Split":
            described.append(step["pattern"].get("Regex", "?"))
        else:
            described.append(str(step.get("type")))
    normalizer = saved.get("normalizer")
    name = _PRE_TOKENIZERS.get(", ".join(described))
    if name is None or (normalizer is not None and normalizer.get("type") != "NFC"):
        raise InputError(
            f"How the tokenizer of {folder} splits texts ({', '.join(described) or 'not at all'}) has no name that is "
            f"known here. {_ELSEWHERE}"
        )
    return name


def _write_tensors(
    writer: GGUFWriter,
    folder: str,
    config: PreTrainedConfig,
    architecture: _Architecture,
    kind: GGMLQuantizationType,
) -> None:
    """All tensors, in two passes: the file begins with their names and shapes.

    Raises:
        InputError: for a tensor that the layout has no place for.
    """
    names = get_tensor_name_map(architecture.arch, config.num_hidden_layers)
    written: list[tuple[Path, str, GGMLQuantizationType]] = []
    factors = _rope_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for path, name, shape in _tensors(folder, config):
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise InputError(
                f"{folder}: {name} has no place in a GGUF file of type {config.model_type}. Merge the adapter first "
                "(monolora merge --method linear); a checkpoint that keeps the activation cannot be exported."
            )
        of_tensor = kind if len(shape) > 1 else GGMLQuantizationType.F32
        if kind == GGMLQuantizationType.Q8_0 and shape[-1] % 32:
            of_tensor = GGMLQuantizationType.F16 if len(shape) > 1 else GGMLQuantizationType.F32
        stored = np.dtype({0: np.float32, 1: np.float16}.get(of_tensor, np.uint8))
        bytes_shape = shape if stored != np.uint8 else quant_shape_to_byte_shape(shape, of_tensor)
        size = int(np.prod(bytes_shape)) * stored.itemsize
        writer.add_tensor_info(target, bytes_shape, stored, size, raw_dtype=of_tensor)
        written.append((path, name, of_tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for path, name, of_tensor in written:
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(name).float()
        if architecture.rotates_pairs and (heads := _heads(name, config)):
            tensor = _pairs(tensor, heads)
        writer.write_tensor_data(quantize(tensor.numpy(), of_tensor))


def _tensors(folder: str, config: PreTrainedConfig) -> Iterator[tuple[Path, str, tuple[int, ...]]]:
    """File, name and shape of each tensor; a tied output layer is left out."""
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                if not (name == "lm_head.weight" and config.tie_word_embeddings):
                    yield path, name, tuple(file.get_slice(name).get_shape())


def _heads(name: str, config: PreTrainedConfig) -> int:
    """Of a projection that is rotated; 0 for another tensor."""
    module = name.split(".")[-2]
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module, 0)


def _pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of which the halves of each head rotate together, with these pairs side by side."""
    halves = weight.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()


def _rope_factors(config: PreTrainedConfig) -> np.ndarray | None:
    """Llama 3's scaling: what each frequency is divided by. None without it."""
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "llama3":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = _head_size(config)
    plain = rope["rope_theta"] ** -(torch.arange(0, size, 2).double() / size)
    return (plain / scaled.double()).float().numpy()
