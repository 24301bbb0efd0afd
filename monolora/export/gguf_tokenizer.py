"""A tokenizer in a GGUF file: of byte pairs (``gpt2``), or of SentencePiece with byte fallback (``llama``)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from monolora.errors import InputError
from monolora.model_files import end_tokens

ELSEWHERE = "Convert the checkpoint with llama.cpp's convert_hf_to_gguf.py."
SPACE = "\u2581"  # SentencePiece's
# What splits a text before byte pairs are merged, as tokenizer.json has it, and its name in llama.cpp.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = {"gpt2": "gpt-2", "digits, gpt2": "smollm", _WORDS % "{1,3}": "llama-bpe", _WORDS % "": "qwen2"}
# What SentencePiece itself does to a text, as tokenizer.json has it: spaces become its sign, one is put in front.
_TO_SIGNS = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_SENTENCEPIECE_STEPS = ({"type": "Prepend", "prepend": SPACE}, _TO_SIGNS, _AT_SPACES)


def add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, folder: str, vocab_size: int) -> None:
    """Vocabulary, types of tokens, merges or scores, special tokens, and the chat template.

    Args:
        writer: of the file.
        tokenizer: to write.
        folder: of the checkpoint, for its end tokens and for messages.
        vocab_size: of the model, which may have more rows than the tokenizer has tokens.

    Raises:
        InputError: for a tokenizer that llama.cpp would read otherwise.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    saved = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    model, added = saved["model"], {entry["id"]: entry for entry in saved.get("added_tokens", ())}
    if model.get("type") != "BPE":
        kind = model.get("type") or type(tokenizer).__name__
        raise InputError(f"The tokenizer of {folder} is none of byte pairs ({kind}), and is not exported. {ELSEWHERE}")
    by_id = {number: token for token, number in model["vocab"].items()} | {
        number: entry["content"] for number, entry in added.items()
    }
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(vocab_size)]
    types = [_token_type(by_id.get(number), added.get(number)) for number in range(vocab_size)]
    if model.get("byte_fallback"):
        _check_sentencepiece(saved, folder)
        scores = _scores(merges, model["vocab"], {entry["content"] for entry in added.values()}, folder)
        lowest = min(scores.values()) - 1
        unknown = model["vocab"].get(model.get("unk_token"), tokenizer.unk_token_id)
        for number, token in by_id.items():
            if number < vocab_size:
                types[number] = _sentencepiece_type(token, number == unknown, types[number])
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        # User-defined tokens are found before spaces are replaced.
        writer.add_token_list(
            [
                token.replace(SPACE, " ") if kind == TokenType.USER_DEFINED else token
                for token, kind in zip(tokens, types, strict=True)
            ]
        )
        writer.add_token_scores([scores.get(token, lowest) for token in tokens])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(saved, folder))
        writer.add_token_list(tokens)
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_token_types(types)
    special: tuple[tuple[Any, int | None], ...] = (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, _end_token(tokenizer, folder)),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    )
    for add, token in special:
        if token is not None and token < vocab_size:
            add(token)
    ids: Any = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(ids[:1] == [tokenizer.bos_token_id])
    if ids[-1:] == [tokenizer.eos_token_id]:
        writer.add_add_eos_token(True)
    writer.add_add_space_prefix(_has_space_in_front(tokenizer))
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.get_chat_template())


def _token_type(token: str | None, added: Mapping[str, Any] | None) -> TokenType:
    if token is None:
        return TokenType.UNUSED
    if added is None:
        return TokenType.NORMAL
    return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED


def _sentencepiece_type(token: str, is_unknown: bool, kind: TokenType) -> TokenType:
    if is_unknown:
        return TokenType.UNKNOWN
    return TokenType.BYTE if kind == TokenType.NORMAL and token in _BYTES else kind


_BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}


def _end_token(tokenizer: PreTrainedTokenizerBase, folder: str) -> int | None:
    """The one that answers end with: of the generation config where it has one, else the tokenizer's."""
    ends = end_tokens(folder)
    return tokenizer.eos_token_id if not ends or tokenizer.eos_token_id in ends else ends[0]


def _steps(step: Mapping[str, Any] | None, parts: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer."""
    if step is None:
        return []
    return list(step[parts]) if step["type"] == "Sequence" else [step]


def _pre_tokenizer(saved: Mapping[str, Any], folder: str) -> str:
    """llama.cpp's name of how texts are split.

    Raises:
        InputError: if it has none that is known here.
    """
    described = []
    for step in _steps(saved.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "ByteLevel":
            described += ["gpt2"] if step.get("use_regex", True) else []
        elif step["type"] == "Digits" and step.get("individual_digits"):
            described.append("digits")
        elif step["type"] == "Split":
            described.append(step["pattern"].get("Regex", "?"))
        else:
            described.append(str(step["type"]))
    normalizer = saved.get("normalizer")
    name = _PRE_TOKENIZERS.get(", ".join(described))
    if name is None or (normalizer is not None and normalizer.get("type") != "NFC"):
        raise InputError(
            f"How the tokenizer of {folder} splits texts ({', '.join(described) or 'not at all'}) has no name that is "
            f"known here. {ELSEWHERE}"
        )
    return name


def _check_sentencepiece(saved: Mapping[str, Any], folder: str) -> None:
    """Check that texts are read as by SentencePiece: nothing changes but spaces, and every byte has a token.

    Raises:
        InputError: naming what differs.
    """
    vocab = saved["model"]["vocab"]
    steps = [
        *_steps(saved.get("normalizer"), "normalizers"),
        *_steps(saved.get("pre_tokenizer"), "pretokenizers"),
    ]
    joins_words = any(SPACE in token.lstrip(SPACE) or token.startswith(SPACE * 2) for token in vocab)
    other = [
        str(step["type"])
        for step in steps
        if step not in _SENTENCEPIECE_STEPS
        and not (
            step["type"] == "Metaspace" and step["replacement"] == SPACE and not (step.get("split") and joins_words)
        )
    ]
    if other:
        problem = f"changes or splits texts ({', '.join(other)}) where SentencePiece does not"
    elif any(name not in vocab and not (byte < 128 and chr(byte) in vocab) for name, byte in _BYTES.items()):
        problem = "has no token for some byte"
    else:
        return
    raise InputError(f"The tokenizer of {folder} {problem}, and is not exported. {ELSEWHERE}")


def _scores(
    merges: Sequence[tuple[str, ...]], vocab: Mapping[str, int], added: set[str], folder: str
) -> dict[str, float]:
    """By the tokens that are merged: the sooner, the higher.

    llama.cpp has no list of merges. It joins any two neighbours whose text is a token, that of the highest score first.

    Raises:
        InputError: if that is not what the merges say.
    """
    made = ["".join(merge) for merge in merges]
    last = {token: rank for rank, token in enumerate(made)}
    implied = {
        (token[:at], token[at:])
        for token in vocab.keys() - added
        for at in range(1, len(token))
        if all(part in vocab or len(part) == 1 for part in (token[:at], token[at:]))
    }
    is_told = bool(made) and implied <= set(merges)
    scores: dict[str, float] = {}
    score, until, before = 0.0, -1, ""
    for rank, token in enumerate(made):
        if token in scores:
            continue
        if rank > until:
            score -= 1
        else:  # between the merges of another token: SentencePiece gives runs of spaces one score
            is_told &= len(set(token + before)) == 1
        scores[token] = score
        until, before = max(until, last[token]), token
    if not is_told:
        raise InputError(
            f"The merges of the tokenizer of {folder} are not those of SentencePiece, by which llama.cpp joins any two "
            f"pieces whose text is in the vocabulary. {ELSEWHERE}"
        )
    return scores


def _has_space_in_front(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether texts get a space in front, which llama.cpp then puts behind every special token too.

    Of a model with a chat template, what it does behind a special token counts: so every prompt begins.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    begin = str(tokenizer.bos_token or "") if tokenizer.chat_template is not None else ""
    tokens = backend.encode(f"{begin}a", add_special_tokens=False).tokens
    return bool(tokens[1 if begin else 0].startswith(SPACE))
