"""A sequence classifier with beaver-dam's labels on any backbone, and its probabilities on rows.

Shapes: E examples, B of them in a batch, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import (
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from monolora import hub
from monolora.beaverdam import LABELS, TooLongError, encode
from monolora.errors import InputError
from monolora.recipes.judge.data import Row
from monolora.terminal import track


class Example(NamedTuple):
    """A row as a judge reads it.

    Attributes:
        token_ids: of beaver-dam's text.
        cut: whether the end of the response is left out.
        row: where it comes from.
    """

    token_ids: list[int]
    cut: bool
    row: Row


def load_backbone(folder: str) -> PreTrainedModel:
    """The model in ``folder`` in float32 with a new head of one logit a label.

    Raises:
        InputError: if the folder holds no model that can classify, or its weights are damaged.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report the new head as missing
    try:
        model, loading_info = hub.load_classifier(
            folder,
            "make",
            dtype=torch.float32,
            num_labels=len(LABELS),
            id2label=dict(enumerate(LABELS)),
            label2id={label: index for index, label in enumerate(LABELS)},
            problem_type="multi_label_classification",
        )
    finally:
        logging.set_verbosity(verbosity)
    within = f"{model.base_model_prefix}."
    absent = [key for key in loading_info["missing_keys"] if key.startswith(within) and ".pooler." not in key]
    if absent:  # transformers would draw them at random
        raise InputError(f"The weights in {folder} lack {min(absent)} ({len(absent)} such). Copy the model again.")
    return model


@torch.no_grad()
def start_from_mean(model: BertForSequenceClassification) -> None:
    """Make the last layer of an encoder begin as the mean over the tokens, which then reaches the head unchanged.

    BERT classifiers are read at the first token. Sentence encoders such as MiniLM are trained through the mean over
    all tokens, and their first token holds little; a few thousand rows do not change that. The last layer is the one to
    replace: re-initialising it helps small finetunings anyway (Zhang et al. 2021, Revisiting Few-sample BERT
    Fine-tuning). Queries of zero attend to all tokens alike, and their gradients are not zero, because the keys stay.
    """
    layer, pooler = model.bert.encoder.layer[-1], model.bert.pooler.dense
    attention = layer.attention
    for linear in (attention.self.query, layer.output.dense):
        nn.init.zeros_(linear.weight)
    for linear in (attention.self.value, attention.output.dense, pooler):
        nn.init.eye_(linear.weight)
    for linear in (attention.self.query, attention.self.value, attention.output.dense, layer.output.dense, pooler):
        nn.init.zeros_(linear.bias)
    attention.output.LayerNorm.reset_parameters()
    layer.output.LayerNorm.reset_parameters()


def load_tokenizer(folder: str, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the right with a token that is not the end token; sets it in the model's config.

    Decoders are read at the last token that is no padding. If the end token were the padding, transformers would read
    them before it and vLLM at it.

    Raises:
        InputError: if there is no tokenizer, or it has no token to pad with.
    """
    tokenizer = hub.load_tokenizer(folder, padding_side="right", truncation_side="right")
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        others = [token for token in (tokenizer.unk_token, *tokenizer.all_special_tokens) if token is not None]
        others = [token for token in others if token != tokenizer.eos_token]
        if not others:
            raise InputError(f"The tokenizer in {folder} has no special token to pad with. Give it a pad_token.")
        tokenizer.pad_token = others[0]
    model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def longest(model: PreTrainedModel, max_length: int) -> int:
    """``max_length``, at most the model's number of positions."""
    return min(max_length, model.config.get_text_config().max_position_embeddings)


def encode_rows(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[list[Example], int]:
    """The rows as token ids, and the number of those left out because their prompt alone is too long."""
    examples = []
    for row in rows:
        try:
            examples.append(Example(*encode(tokenizer, row.prompt, row.response, max_length), row))
        except TooLongError:
            continue
    return examples, len(rows) - len(examples)


def probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int
) -> NDArray[np.float64]:
    """Each label's probability for each example, in their order; shape ``(E, L)``."""
    probability_EL = np.empty((len(examples), len(LABELS)))
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].token_ids))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    collate = DataCollatorWithPadding(tokenizer)
    model.eval()
    for batch in track(batches, "Judging held-out rows", transient=True):
        padded = collate([{"input_ids": examples[index].token_ids} for index in batch])
        with torch.inference_mode():
            logits_BL = model(**{name: tensor.to(model.device) for name, tensor in padded.items()}).logits
        probability_EL[batch] = torch.sigmoid(logits_BL.double()).cpu().numpy()
    return probability_EL
