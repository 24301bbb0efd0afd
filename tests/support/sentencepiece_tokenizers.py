"""Small tokenizers of SentencePiece's kind, trained here: of Llama 2 and Mistral 0.1, of Phi-3, and of Gemma."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from monolora.data.tasks import demo

SPACE = "\u2581"
_RUNS = [SPACE * length for length in (2, 3, 4)]
# Real ones have runs of spaces, and words that end a line.
_MORE = ["    a     boat", "soups\nwere\n\nnot", "12 345", "Naïve soups"]
_TEMPLATE = "{%% for m in messages %%}%s{%% endfor %%}{%% if add_generation_prompt %%}%s{%% endif %%}"
TEMPLATES = {
    "llama": "{{ bos_token }}" + _TEMPLATE % ("[{{ m.role }}] {{ m.content }} ", "[assistant]"),
    "phi3": _TEMPLATE % ("<|{{ m.role }}|>\n{{ m.content }}<|end|>\n", "<|assistant|>\n"),
    "gemma": "{{ bos_token }}"
    + _TEMPLATE % ("<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n", "<start_of_turn>model\n"),
}
_SPECIAL = {
    "llama": ["<unk>", "<s>", "</s>"],
    "phi3": ["<unk>", "<s>", "</s>"],
    "gemma": ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"],
}


def sentencepiece_tokenizer(kind: str) -> PreTrainedTokenizerBase:
    """A tokenizer of 600 tokens and a few special ones: ``llama``, ``phi3`` or ``gemma``."""
    vocab, merges = _vocabulary(_SPECIAL[kind])
    tokenizer: Any
    if kind == "llama":
        tokenizer = LlamaTokenizer(vocab=vocab, merges=merges, pad_token="</s>", add_bos_token=True)
    elif kind == "gemma":
        tokenizer = GemmaTokenizer(vocab=vocab, merges=merges)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("\n\n", *_RUNS)])
    else:
        backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
        backend.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1)]
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
        )
        roles = ["<|user|>", "<|assistant|>", "<|end|>", "<|system|>"]
        tokenizer.add_special_tokens({"additional_special_tokens": roles})
    tokenizer.chat_template = TEMPLATES[kind]
    return tokenizer


def _vocabulary(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Special tokens, bytes, pieces by their scores, single signs; and the merges that this implies."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    texts = [example.context for example in demo.load().train[:400]] + 20 * _MORE
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    found = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    signs = [piece for piece in found if len(piece) == 1 and piece not in "ï\n"]
    pieces = list(dict.fromkeys([*_RUNS, *(piece for piece in found if len(piece) > 1 and set(piece) <= {*signs})]))
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *signs]
    vocab = {token: number for number, token in enumerate(tokens)}
    return vocab, generate_merges(vocab, {piece: -float(rank) for rank, piece in enumerate(pieces)})
