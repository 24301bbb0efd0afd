"""Tokenizers in GGUF files: what llama.cpp's way of reading makes of them, and transformers' reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, TokenType
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from monolora.errors import InputError
from monolora.export import write_gguf
from tests.support.llama_cpp_tokens import token_ids
from tests.support.sentencepiece_tokenizers import SPACE, sentencepiece_tokenizer
from tests.support.tiny_families import save_tiny_family

FAMILIES = {"llama": "llama", "mistral": "llama", "phi3": "phi3", "gemma2": "gemma", "gemma3_text": "gemma"}
TEXT = "The boat was a delight, and 12,345 soups were not.\n\n\n  Naïve   «да» 你好 🙂\tcafé  \n a    b \n"
MESSAGES = [
    {"role": "user", "content": TEXT},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "?"},
]


def written(folder: Path, family: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The fields of a tiny model's file."""
    save_tiny_family(folder, family, tokenizer)
    (folder.parent / "out").mkdir(exist_ok=True)
    write_gguf(str(folder), folder.parent / "out" / "m.gguf", "f32")
    reader = GGUFReader(folder.parent / "out" / "m.gguf")
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF")}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sentencepiece_tokenizer(tmp_path: Path, family: str) -> None:
    """Signs without a token are bytes; tokens are whole; spaces and newlines are kept."""
    tokenizer: Any = sentencepiece_tokenizer(FAMILIES[family])
    fields = written(tmp_path / "model", family, tokenizer)
    saved: Any = AutoTokenizer.from_pretrained(tmp_path / "model")
    begin = saved.bos_token if fields["tokenizer.ggml.add_bos_token"] else ""
    assert token_ids(fields, TEXT) == saved(begin + TEXT, add_special_tokens=False)["input_ids"]
    chat = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    ids = saved.apply_chat_template(MESSAGES, **chat)["input_ids"]
    prompt = saved.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert token_ids(fields, prompt.removeprefix(begin)) == ids
    own: Any = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="m.gguf")
    assert own(TEXT, add_special_tokens=False)["input_ids"] == saved(TEXT, add_special_tokens=False)["input_ids"]
    assert own.apply_chat_template(MESSAGES, **chat)["input_ids"] == ids
    names = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
    assert names["<unk>"] == TokenType.UNKNOWN
    assert names[saved.bos_token] == TokenType.CONTROL
    assert names["<0x0A>"] == TokenType.BYTE
    assert names[f"{SPACE}boat"] == TokenType.NORMAL
    assert (names.get("\n\n"), names.get("   ")) == (
        (TokenType.USER_DEFINED,) * 2 if "gemma" in family else (None,) * 2
    )
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"] is (family == "phi3")


@pytest.mark.parametrize("template", [True, False])
def test_a_space_in_front(tmp_path: Path, template: bool) -> None:
    """Llama's newer tokenizers put it before a text and not behind BOS, as a prompt of a chat begins."""
    tokenizer: Any = sentencepiece_tokenizer("llama")
    if not template:
        tokenizer.chat_template = None
    fields = written(tmp_path / "model", "llama", tokenizer)
    assert fields["tokenizer.ggml.add_space_prefix"] is not template


def test_an_end_token(tmp_path: Path) -> None:
    tokenizer: Any = sentencepiece_tokenizer("llama")
    tokenizer.add_eos_token, tokenizer.chat_template = True, None
    fields = written(tmp_path / "model", "llama", tokenizer)
    assert fields["tokenizer.ggml.add_eos_token"] is True
    assert token_ids(fields, "a boat") == AutoTokenizer.from_pretrained(tmp_path / "model")("a boat")["input_ids"]


def changed(part: str, value: Any) -> PreTrainedTokenizerFast:
    tokenizer: Any = sentencepiece_tokenizer("phi3")
    setattr(tokenizer.backend_tokenizer, part, value)
    return tokenizer


def other_merges(change: Callable[[list[Any]], list[Any]]) -> PreTrainedTokenizerFast:
    """With some more or fewer merges, in another order."""
    tokenizer: Any = sentencepiece_tokenizer("phi3")
    saved = json.loads(tokenizer.backend_tokenizer.to_str())
    saved["model"]["merges"] = change(saved["model"]["merges"])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(saved)))


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (changed("normalizer", normalizers.NFKC()), r"changes or splits texts \(NFKC\)"),
        (changed("pre_tokenizer", pre_tokenizers.Metaspace(split=True)), r"splits texts \(Metaspace\)"),
        (changed("model", models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], byte_fallback=True)), "some byte"),
        (other_merges(lambda merges: merges[:-1]), "are not those of SentencePiece"),
        (other_merges(lambda merges: merges[::2] + merges[1::2]), "are not those of SentencePiece"),
        (PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", 0.0)], 0))), r"\(Unigram\)"),
    ],
    ids=["normalized", "words apart", "no bytes", "a merge less", "merges apart", "unigram"],
)
def test_what_llama_cpp_would_read_otherwise(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, said: str) -> None:
    with pytest.raises(InputError, match=said):
        written(tmp_path / "model", "llama", tokenizer)
