"""A local hub cache with a tiny random model for every id that PEFT's tests ask for.

The layout is the real one (``models--org--name/snapshots/<commit>``), so that ``from_pretrained("org/name")`` works
unchanged and offline. All dropouts are 0: some tests compare outputs of models in training mode.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

COMMIT = "0" * 40

_SIZES: dict[str, Any] = {"vocab_size": 1000, "num_hidden_layers": 2, "num_attention_heads": 4}
_OPT = _SIZES | {"dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0}
_LLAMA = _SIZES | {"hidden_size": 16, "num_key_value_heads": 2, "intermediate_size": 32, "attention_dropout": 0.0}
_GPT: dict[str, Any] = {"vocab_size": 1000, "n_embd": 32, "n_layer": 2, "n_head": 4}
_GPT |= {"bos_token_id": 98, "eos_token_id": 98, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
_BERT = _SIZES | {"hidden_size": 32, "intermediate_size": 37}
_BERT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_T5: dict[str, Any] = {"vocab_size": 1000, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
_T5 |= {"dropout_rate": 0.0, "decoder_start_token_id": 0}
_BART: dict[str, Any] = {"vocab_size": 1000, "d_model": 16, "dropout": 0.0}
for _side in ("encoder", "decoder"):
    _BART |= {f"{_side}_layers": 2, f"{_side}_attention_heads": 4, f"{_side}_ffn_dim": 4}


def build(cache: Path) -> None:
    """Write every model into ``cache``, the folder that ``HF_HUB_CACHE`` names."""
    transformers.logging.disable_progress_bar()
    for model_id, (auto_class, config) in _models().items():
        folder = cache / f"models--{model_id.replace('/', '--')}"
        torch.manual_seed(0)
        auto_class.from_config(config).save_pretrained(folder / "snapshots" / COMMIT)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)


def _models() -> dict[str, tuple[Any, transformers.PreTrainedConfig]]:
    """Hub id to the class and the config of the model it stands for."""
    gpt2 = transformers.GPT2Config(**_GPT, summary_first_dropout=0.0)
    llama = transformers.LlamaConfig(**_LLAMA)
    bert = transformers.BertConfig(**_BERT)
    roberta = transformers.RobertaConfig(**_BERT)
    causal, classifier = AutoModelForCausalLM, AutoModelForSequenceClassification
    seq2seq = AutoModelForSeq2SeqLM
    return {
        "peft-internal-testing/tiny-random-OPTForCausalLM": (
            causal,
            transformers.OPTConfig(**_OPT, hidden_size=16, word_embed_proj_dim=16, ffn_dim=4),
        ),
        "peft-internal-testing/opt-125m": (
            causal,
            transformers.OPTConfig(**_OPT, hidden_size=64, word_embed_proj_dim=64, ffn_dim=128),
        ),
        "gpt2": (causal, gpt2),
        "peft-internal-testing/tiny-random-GPT2LMHeadModel": (causal, gpt2),
        "peft-internal-testing/tiny-random-GPTJForCausalLM": (causal, transformers.GPTJConfig(**_GPT, rotary_dim=4)),
        "trl-internal-testing/tiny-random-LlamaForCausalLM": (causal, llama),
        "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": (classifier, llama),
        "peft-internal-testing/tiny-dummy-qwen2": (causal, transformers.Qwen2Config(**_LLAMA)),
        "hf-internal-testing/tiny-random-Gemma3ForCausalLM": (
            causal,
            transformers.Gemma3TextConfig(**_LLAMA, head_dim=8),
        ),
        "bert-base-uncased": (classifier, bert),
        "peft-internal-testing/tiny-random-BertForSequenceClassification": (classifier, bert),
        "peft-internal-testing/tiny-random-BertModel": (AutoModel, bert),
        "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (classifier, roberta),
        "peft-internal-testing/tiny-random-RobertaModel": (AutoModel, roberta),
        "peft-internal-testing/tiny-random-DebertaModel": (
            AutoModel,
            transformers.DebertaConfig(**_BERT, pooler_dropout=0.0),
        ),
        "peft-internal-testing/tiny-random-DebertaV2Model": (
            AutoModel,
            transformers.DebertaV2Config(**_BERT, pooler_dropout=0.0),
        ),
        "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": (
            seq2seq,
            transformers.T5Config(**_T5),
        ),
        "peft-internal-testing/tiny-random-BartForConditionalGeneration": (seq2seq, transformers.BartConfig(**_BART)),
    }
