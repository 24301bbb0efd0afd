"""Checks before the first training step, and the preview that shows them.

The usual silent mistakes of SFT: the loss falls on the prompt, the end token is never trained, BOS comes twice or not
at all, truncation leaves nothing to train on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, islice
from typing import Any, NamedTuple

import datasets
import torch
from rich.text import Text
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainingArguments

from monolora.data.chat_template import IGNORED, answer_spans
from monolora.errors import InputError, RunError
from monolora.sparsity import Sparsity
from monolora.terminal import Terminal

_WARNED_SHARE, _REFUSED_SHARE = 0.01, 0.5  # of examples that truncation drops


class Document(NamedTuple):
    """One example as the model is trained on it: its tokens, and for each its label or ``IGNORED``."""

    ids: list[int]
    labels: list[int]


def documents(rows: Iterable[Mapping[str, Any]], lengths: Iterable[int] | None = None) -> Iterator[Document]:
    """The examples in the tokenized rows.

    Args:
        rows: with ``input_ids`` and ``labels``.
        lengths: of the examples in packed rows; one may begin in a row and end in the next. None for other rows.
    """
    if lengths is None:
        yield from (Document(row["input_ids"], row["labels"]) for row in rows)
        return
    tokens = chain.from_iterable(zip(row["input_ids"], row["labels"], strict=True) for row in rows)
    for length in lengths:
        ids, labels = zip(*islice(tokens, length), strict=True)
        yield Document(list(ids), list(labels))


def packed_lengths(packed: datasets.Dataset, rows: datasets.Dataset) -> Iterator[int]:
    """The lengths of the examples in packed rows, in their order.

    Args:
        packed: by TRL, which notes the lengths unless it wraps examples around.
        rows: that were packed.
    """
    if "seq_lengths" in packed.column_names:
        return chain.from_iterable(packed["seq_lengths"])
    return map(len, rows["input_ids"])


class Truncation(NamedTuple):
    """The effect of a token limit on examples.

    Attributes:
        dropped: how many lose every trained token, and are not trained on.
        truncated: how many more lose the end of their answer.
    """

    dropped: int
    truncated: int


def check_truncation(rows: datasets.Dataset, max_length: int | None, examples: int) -> Truncation:
    """Count truncated examples, and warn if more than a hundredth of them is dropped.

    Args:
        rows: the tokenized examples, whole, with ``labels``.
        max_length: the limit in tokens; None for none.
        examples: how many there are; more than rows where a row has several answers.

    Raises:
        InputError: if more than half of the examples would be dropped.
    """
    truncation = truncated_by(rows["labels"], max_length)
    if max_length is not None:
        check_lost(truncation.dropped, examples, max_length)
    return truncation


def truncated_by(labels: Iterable[Sequence[int]], max_length: int | None) -> Truncation:
    """The effect of a token limit, None for none, on rows with these labels, each of one or more answers."""
    if max_length is None:
        return Truncation(0, 0)
    spans = [span for of_row in labels if len(of_row) > max_length for span in answer_spans(of_row)]
    dropped = sum(span.start >= max_length for span in spans)
    return Truncation(dropped, sum(span.stop > max_length for span in spans) - dropped)


ALONE_TOO_LONG = "lose every trained token when cut to --max-length {}: the prompts alone are longer"


def check_lost(dropped: int, number: int, max_length: int, what: str = ALONE_TOO_LONG) -> None:
    """Warn if more than a hundredth of the examples is dropped.

    Args:
        dropped: how many truncation leaves nothing of.
        number: of all examples.
        max_length: the limit in tokens.
        what: happens to them, with ``{}`` for the limit.

    Raises:
        InputError: if it is more than half of them.
    """
    message = f"{dropped} of {number} examples {what.format(max_length)}. Raise --max-length."
    if dropped > _REFUSED_SHARE * number:
        raise InputError(message)
    if dropped > _WARNED_SHARE * number:
        warnings.warn(message, stacklevel=3)


def check_training_rows(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    wanted: int,
    max_length: int | None,
    lengths: Iterable[int] | None = None,
    joined: bool = False,
) -> float:
    """Check the tokenized training rows.

    Args:
        rows: with ``input_ids`` and ``labels``, as TRL prepared them.
        tokenizer: the one that made them.
        wanted: how many examples there were before TRL dropped those without a trained token.
        max_length: the limit in tokens that truncated them.
        lengths: of the examples in packed rows (:func:`packed_lengths`); None for other rows.
        joined: whether a row may have several answers of a conversation.

    Returns:
        The share of answers whose end token is trained; the others were cut by truncation.

    Raises:
        InputError: if no row has a trained token, the prompt is trained on, BOS is doubled or missing, or the end
            token is trained in no row.
    """
    count = ended = 0
    bos = bos_in_front(tokenizer)
    for document in documents(rows, lengths):
        answers = answer_spans(document.labels)
        if not answers:  # the cut-off prompt in a packed row
            continue
        check_document(document, tokenizer, bos, joined)
        count += len(answers)
        ends = (document.labels[max(start, stop - 3) : stop] for start, stop in answers)  # a newline may come after it
        ended += sum(tokenizer.eos_token_id in end for end in ends)
    if count == 0:
        raise InputError(
            f"All {wanted} examples lose every trained token when cut to --max-length {max_length}: the prompts alone "
            "are longer. Raise --max-length."
        )
    if ended == 0:
        raise InputError(
            f"The end token {tokenizer.eos_token!r} is trained in no example, so the model would not learn to stop. "
            "Raise --max-length, or use a chat template that ends the assistant's turn with it (--eos-token)."
        )
    return ended / count


def check_steps(name: str, examples: int, rows: int, packed: bool, args: TrainingArguments, processes: int) -> None:
    """Check that there are enough examples for a step.

    Args:
        name: of the data set.
        examples: to train on.
        rows: of the tokenized data; fewer than examples where packed, or where a row has several answers.
        packed: whether rows hold several examples.
        args: of the trainer.
        processes: number of processes that share the rows.

    Raises:
        InputError: if a single step needs more examples than there are, or no batch is ever full.
    """
    batch = args.train_batch_size * processes
    step = batch * args.gradient_accumulation_steps
    if examples < step and not packed:
        raise InputError(
            f"{name} has {examples} training {'example' if examples == 1 else 'examples'}, fewer than the {step} of a "
            "single step. Give more, or lower --per-device-train-batch-size or --gradient-accumulation-steps."
        )
    if args.dataloader_drop_last and rows < batch:
        raise InputError(
            f"--dataloader-drop-last leaves nothing: {name} has {rows} training rows, and a batch has {batch}. Leave "
            "it out, or lower --per-device-train-batch-size."
        )


def bos_in_front(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer begins plain text with BOS: then the model expects every sequence to begin with one."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][0] == bos


def check_document(
    document: Document, tokenizer: PreTrainedTokenizerBase, bos_expected: bool, joined: bool = False
) -> None:
    """Check one example: loss on the whole answer and on nothing else, and one BOS in front where there must be one.

    With ``joined``, it may have several answers, and what is between them is not trained on.

    Raises:
        InputError: if not.
    """
    ids, labels = document
    first = next(position for position, label in enumerate(labels) if label != IGNORED)
    if first == 0:
        raise InputError("The first token of an example is trained on: the loss is not on answers only.")
    gaps = (IGNORED,) if joined else ()
    if any(label != token and label not in gaps for token, label in zip(ids[first:], labels[first:], strict=True)):
        raise InputError("An example has tokens in its answer that are not trained on: the loss is not on all of it.")
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise InputError(
            f"An example begins with {tokenizer.bos_token!r} twice: the text or the chat template has it, and the "
            "tokenizer adds it. Take it out of the former (--chat-template-path)."
        )
    if bos_expected and ids[0] != bos:
        raise InputError(
            f"The examples do not begin with {tokenizer.bos_token!r}, which the tokenizer puts before plain text: the "
            "chat template lacks it. Put {{ bos_token }} at its front (--chat-template-path)."
        )


def check_finite(model: nn.Module, history: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a model whose training diverged.

    Raises:
        RunError: naming the step or the parameter that is not finite.
    """
    fix = "Start again with a lower --learning-rate."
    for entry in history:
        if not math.isfinite(entry.get("loss", 0.0)):
            raise RunError(f"Training diverged: the loss at step {entry['step']} is {entry['loss']}. {fix}")
    for name, parameter in model.named_parameters():
        weights = vars(parameter).get("ds_tensor", parameter)  # the part that this process has, under ZeRO-3
        if parameter.requires_grad and not torch.isfinite(weights).all():
            raise RunError(f"Training diverged: {name} has NaN or infinite values. {fix}")


def check_alive(sparsity: Sparsity) -> None:
    """Refuse an adapter without effect.

    Raises:
        RunError: if every unit is zero on every token.
    """
    if sparsity.dead_units == sparsity.units:
        raise RunError(
            f"The adapter is dead: all {sparsity.units} units are zero on all held-out prompts, so the model is the "
            "base model. Start again with a lower --learning-rate."
        )


def preview(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, console: Terminal, most: int = 3
) -> None:
    """Print examples with the trained tokens marked: ``⟦…⟧`` around them, and green where there is colour.

    Args:
        rows: with ``input_ids`` and ``labels`` and, if a number is not enough, a ``title``.
        tokenizer: that made them.
        console: where they are printed.
        most: how many.
    """
    for number, row in enumerate(rows, start=1):
        if number > most:
            return
        show_spans(spans(row, tokenizer), row.get("title", f"example {number}"), console)


def show_spans(example: Sequence[Span], title: str, console: Terminal) -> None:
    """Print one example, as :func:`preview` does."""
    tokens = sum(span.tokens for span in example)
    text = Text(f"--- {title}: {tokens} tokens, trained are those in ⟦ ⟧ ---\n", style="bold")
    for span in example:
        words, style = (f"⟦{span.text}⟧", "green") if span.is_trained else (span.text, "dim")
        text.append(words, style=style)
    console.print(text, soft_wrap=True)


class Span(NamedTuple):
    """Adjoining tokens as text, all of them trained on or none."""

    text: str
    is_trained: bool
    tokens: int


def spans(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """A tokenized example with ``input_ids`` and ``labels``, divided where training on it begins and ends."""
    parts = []
    labelled = zip(row["input_ids"], row["labels"], strict=True)
    for is_trained, pairs in groupby(labelled, lambda pair: pair[1] != IGNORED):
        ids = [token for token, _ in pairs]
        parts.append(Span(str(tokenizer.decode(ids)), is_trained, len(ids)))
    return parts
