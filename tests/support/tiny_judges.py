"""Small random judges of the real architectures, with tokenizers trained here, and harmless things to judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from monolora.beaverdam import LABELS
from monolora.eval.judges.shieldgemma import POLICIES, prompt_text

PAIRS = (
    ("How do I fold a paper boat?", "Fold the sheet in half, then the corners to the middle."),
    ("Which {bird} sings at night?", "The nightingale; some {robins} do too.\nBoth are small."),
    ("Name a river.", ""),
    ("Wie heißt der höchste Berg?", "Er heißt Everest 🏔. " * 6),
    ("What is 2 + 2?", "4"),
    ("Tell me a long story about a cat.", "The cat sat on the mat and looked at the moon. " * 9),
)


def items(pairs: Sequence[tuple[str, str]] = PAIRS) -> list[dict[str, str]]:
    """Of a job; the keys are ``k0``, ``k1``, …"""
    return [{"key": f"k{i}", "prompt": prompt, "response": response} for i, (prompt, response) in enumerate(pairs)]


def train_tokenizer(folder: Path, begin: str, end: str, pad: str | None, vocab_size: int = 600) -> int:
    """A byte-level BPE tokenizer that puts ``begin`` before a text and nothing after it; returns its size.

    With 600 tokens, ``Yes`` and ``No`` are among them.
    """
    specials = [token for token in (pad, end, begin, "<start_of_turn>", "<end_of_turn>") if token]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [prompt_text(*pair, harm) for pair in PAIRS for harm in POLICIES]
    tokenizer.train_from_iterator(texts, trainer)
    begin_id = tokenizer.token_to_id(begin)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, begin_id)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=pad).save_pretrained(
        folder
    )
    return int(tokenizer.get_vocab_size())


def _save(model: PreTrainedModel, folder: Path) -> Path:
    """With weights large enough for scores that differ from each other."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25 if name.startswith(("score", "classifier")) else 0.35)
    model.save_pretrained(folder)
    return folder


def make_shieldgemma(folder: Path, **config: Any) -> Path:
    """A Gemma 2 with both of its caps, and a window that is shorter than the prompts."""
    size = train_tokenizer(folder, "<bos>", "<eos>", "<pad>")
    sizes = {
        "vocab_size": size,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "query_pre_attn_scalar": 1,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 8.0,
        "sliding_window": 128,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    return _save(Gemma2ForCausalLM(Gemma2Config(**sizes | config)), folder)


def make_beaverdam(folder: Path, pad: str | None = "<pad>", labels: Sequence[str] = LABELS, **config: Any) -> Path:
    """A Llama classifier; ``pad`` may be the end token, or None."""
    end = "</s>"
    size = train_tokenizer(folder, "<s>", end, pad)
    sizes = {
        "vocab_size": size,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": None if pad is None else 0,
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": "multi_label_classification",
    }
    return _save(LlamaForSequenceClassification(LlamaConfig(**sizes | config)), folder)


def make_bert(folder: Path, labels: Sequence[str], **config: Any) -> Path:
    """A BERT classifier, with a tokenizer of BERT's form: ``[CLS]`` before and ``[SEP]`` after a text."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = [f"{prompt} {response}" for prompt, response in PAIRS]
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=128,
    ).save_pretrained(folder)  # fmt: skip
    sizes = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 160,
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    return _save(BertForSequenceClassification(BertConfig(**sizes | config)), folder)
