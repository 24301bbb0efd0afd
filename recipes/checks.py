"""What is checked before a run trains a single step, and the preview that shows it.

The usual silent mistakes of SFT: the loss falls on the prompt, the end token is never trained, BOS comes twice,
truncation leaves nothing to train on.
"""

from __future__ import annotations

from collections.abc import Iterable

import datasets
import torch
from rich.console import Console
from rich.text import Text
from torch import nn
from transformers import PreTrainedTokenizerBase

from monolora.errors import InputError

IGNORED = -100


def check_training_rows(
    rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, wanted: int, max_length: int | None
) -> None:
    """Check the tokenized training rows.

    Args:
        rows: with ``input_ids`` and ``labels``, as TRL prepared them.
        tokenizer: the one that made them.
        wanted: how many there were before TRL dropped those without a trained token.
        max_length: the limit in tokens that truncated them.

    Raises:
        InputError: if no row has a trained token, the prompt is trained on, BOS is doubled, or the end token is
            trained in no row.
    """
    if len(rows) == 0:
        raise InputError(
            f"All {wanted} examples lose every trained token when cut to --max-length {max_length}: the prompts alone "
            "are longer. Raise --max-length."
        )
    for row in rows:
        check_row(row["input_ids"], row["labels"], tokenizer)
    if not any(ends_trained(row["input_ids"], row["labels"], tokenizer) for row in rows):
        raise InputError(
            f"The end token {tokenizer.eos_token!r} is trained in no example, so the model would not learn to stop. "
            "Raise --max-length, or use a chat template that ends the assistant's turn with it (--eos-token)."
        )


def check_row(ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Check one row: loss on the completion only, at most one BOS in front.

    Raises:
        InputError: if not.
    """
    if labels and labels[0] != IGNORED:
        raise InputError("The first token of an example is trained on: the loss is not on completions only.")
    bos = tokenizer.bos_token_id
    if bos is not None and len(ids) > 1 and ids[0] == bos == ids[1]:
        raise InputError(
            f"An example begins with {tokenizer.bos_token!r} twice: the template and the tokenizer both add it. "
            "Remove it from the chat template (--chat-template-path)."
        )


def ends_trained(ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the row's last end token is trained; templates may put a newline after it."""
    return tokenizer.eos_token_id in [label for label in labels[-3:] if label != IGNORED]


def share_ending(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> float:
    """Share of rows whose end token is trained; the others were cut by truncation."""
    return sum(ends_trained(row["input_ids"], row["labels"], tokenizer) for row in rows) / max(1, len(rows))


def check_finite_parameters(model: nn.Module) -> None:
    """Refuse to go on with a model whose training diverged.

    Raises:
        RuntimeError: naming the first parameter that is not finite.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise RuntimeError(f"Training diverged: {name} has NaN or infinite values. Lower --learning-rate.")


def preview(rows: Iterable[dict], tokenizer: PreTrainedTokenizerBase, console: Console, most: int = 3) -> None:
    """Print examples with the trained tokens marked: ``⟦…⟧`` around them, and green where there is colour."""
    for number, row in enumerate(rows, start=1):
        if number > most:
            return
        text = Text(
            f"--- example {number}: {len(row['input_ids'])} tokens, trained are those in ⟦ ⟧ ---\n", style="bold"
        )
        trained = False
        for token, label in zip(row["input_ids"], row["labels"], strict=True):
            if (label != IGNORED) != trained:
                trained = not trained
                text.append("⟦" if trained else "⟧", style="green")
            text.append(tokenizer.decode([token]), style="green" if trained else "dim")
        text.append("⟧" if trained else "", style="green")
        console.print(text, soft_wrap=True)
