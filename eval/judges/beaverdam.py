"""Beavertails-7B moderation (PKU-Alignment/beaver-dam-7b): 14 kinds of harm, each with a probability of its own.

Its checkpoint is a ``LlamaForSequenceClassification``, loaded by the authors' code with
``AutoModelForSequenceClassification``: the labels' logits at the last token that is no padding, each through a sigmoid.
The format of what it reads is in :mod:`monolora.beaverdam`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from monolora.beaverdam import LABELS, THRESHOLD, TooLongError, encode_all
from monolora.errors import InputError
from monolora.eval.judges import backends, checkpoints
from monolora.eval.judges.base import TOO_LONG, Judge, JudgeOptions, Readable, Unreadable, judgements_of, sigmoid
from monolora.eval.judges.checkpoints import Checkpoint
from monolora.hub import load_tokenizer

DEFAULT = "PKU-Alignment/beaver-dam-7b"
FORMAT = 1  # of the text; part of the judge's identity


def make(model: str | None, options: JudgeOptions) -> Judge:
    """The judge of a checkpoint (default: ``PKU-Alignment/beaver-dam-7b``).

    Raises:
        InputError: if it cannot be had, or its labels are not the 14.
    """
    checkpoint = checkpoints.find(model or DEFAULT, checkpoints.CLASSIFIER, options)
    return of_checkpoint(checkpoint, "beaverdam", options, checkpoints.engine_of(options, "vllm"))


def of_checkpoint(checkpoint: Checkpoint, name: str, options: JudgeOptions, engine: str) -> Judge:
    """The judge of a checkpoint that is there, under a name of its own.

    Raises:
        InputError: if its labels are not the 14.
    """
    labels = _labels(checkpoint)
    positions = checkpoint.facts.get("max_position_embeddings", math.inf)
    length = min(options.beaverdam_max_length, positions, options.max_model_len or math.inf)
    settings = checkpoints.settings(checkpoint, options, engine, int(length))
    return Judge(
        name=name,
        kind="harm",
        scores=LABELS,
        threshold=THRESHOLD,
        unsafe=LABELS,
        identity=checkpoints.identity(checkpoint, settings, kind="beaverdam", format=FORMAT),
        target="monolora.eval.judges.beaverdam:judgements",
        settings=settings | {"labels": labels},
    )


def _labels(checkpoint: Checkpoint) -> list[str]:
    """Of the logits, in their order; a checkpoint that names none has the judge's own order."""
    labels = checkpoint.labels
    if len(labels) != len(LABELS):
        raise InputError(
            f"{checkpoint.name} has {len(labels)} labels, beaver-dam {len(LABELS)}. "
            f"Give a classifier with labels of its own as classifier:{checkpoint.name}"
        )
    if labels == [f"LABEL_{number}" for number in range(len(LABELS))]:
        return list(LABELS)
    foreign = sorted(set(labels) - set(LABELS))
    if foreign:
        raise InputError(
            f"{checkpoint.name} has the label {foreign[0]!r}, which is none of beaver-dam's {len(LABELS)}. "
            f"Give it as classifier:{checkpoint.name}"
        )
    return labels


class Reader:
    """One text a response.

    Args:
        tokenizer: of the checkpoint.
        max_length: tokens of the text, at most.
        labels: of the logits, in their order.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._labels = labels

    def read(self, items: Sequence[Mapping[str, Any]]) -> list[Readable | Unreadable]:
        """Token ids; what does not fit is cut from the end."""
        pairs = [(item["prompt"], item["response"]) for item in items]
        return [
            Unreadable(item["key"], f"{TOO_LONG}: {encoded}")
            if isinstance(encoded, TooLongError)
            else Readable(item["key"], [encoded.token_ids], encoded.cut)
            for item, encoded in zip(items, encode_all(self._tokenizer, pairs, self._max_length), strict=True)
        ]

    def scores(self, logits: Sequence[Sequence[float]]) -> dict[str, float]:
        """The probability of each label, in beaver-dam's order."""
        (of_labels,) = logits
        found = dict(zip(self._labels, map(sigmoid, of_labels), strict=True))
        return {label: found[label] for label in LABELS}


def judgements(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Judge responses; see :func:`monolora.eval.judges.base.judgements_of`.

    Raises:
        InputError: if the weights are damaged.
        RunError: if the engine does not start.
    """
    settings = job["settings"]
    tokenizer = load_tokenizer(settings["folder"], truncation_side="right")
    reader = Reader(tokenizer, settings["max_length"], settings["labels"])
    yield from judgements_of(job, reader, backends.classification(settings))
