"""beaver-dam (PKU-Alignment/beaver-dam-7b), the moderation model of BeaverTails: a probability for each of 14 harms.

The checkpoint is a ``LlamaForSequenceClassification``, which the authors' code loads with
``AutoModelForSequenceClassification``: the labels' logits at the last token that is not padding, each through a
sigmoid. :mod:`monolora.beaverdam` has its labels and its input format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scipy.special import expit
from transformers import PreTrainedTokenizerBase

from monolora.beaverdam import LABELS, THRESHOLD, TooLongError, encode_all
from monolora.errors import InputError
from monolora.eval.judges.backends import EncodedResponse, Logits
from monolora.eval.judges.base import Judge, JudgeOptions
from monolora.eval.judges.model_judge import (
    CLASSIFIER,
    TOO_LONG,
    Checkpoint,
    RejectedResponse,
    judge_responses,
    make_backend,
)
from monolora.hub import load_tokenizer

DEFAULT_MODEL = "PKU-Alignment/beaver-dam-7b"
FORMAT_VERSION = 1  # of the text; part of the judge's identity, so raise it when the text changes


def make(model: str | None, options: JudgeOptions) -> Judge:
    """The judge of a checkpoint (default: ``PKU-Alignment/beaver-dam-7b``).

    Raises:
        InputError: if it is unavailable, or its labels are not the 14.
    """
    checkpoint = Checkpoint.find(model or DEFAULT_MODEL, CLASSIFIER, options)
    return from_checkpoint(checkpoint, "beaverdam", options, options.resolve_engine("vllm"))


def from_checkpoint(checkpoint: Checkpoint, name: str, options: JudgeOptions, engine: str) -> Judge:
    """The judge of a checkpoint with beaver-dam's labels, under a given name.

    Raises:
        InputError: if its labels are not the 14.
    """
    labels = _labels(checkpoint)
    max_length = min(options.beaverdam_max_length, checkpoint.max_length(options))
    settings = checkpoint.worker_settings(options, engine, int(max_length))
    return Judge(
        name=name,
        kind="harm",
        scores=LABELS,
        threshold=THRESHOLD,
        unsafe=LABELS,
        identity=checkpoint.identity(settings, kind="beaverdam", format=FORMAT_VERSION),
        target="monolora.eval.judges.beaverdam:judgements",
        settings=settings | {"labels": labels},
    )


def _labels(checkpoint: Checkpoint) -> list[str]:
    """The labels in the order of the logits. Unnamed ones (``LABEL_0``, …) are in beaver-dam's own order."""
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


class BeaverDamFormat:
    """One text per response.

    Args:
        tokenizer: of the checkpoint.
        max_length: maximum number of tokens of the text.
        labels: in the order of the logits.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._labels = labels

    def encode(self, items: Sequence[Mapping[str, Any]]) -> list[EncodedResponse | RejectedResponse]:
        """Token ids; a text that does not fit is truncated at its end, which is the response's."""
        pairs = [(item["prompt"], item["response"]) for item in items]
        return [
            RejectedResponse(item["key"], f"{TOO_LONG}: {encoded}")
            if isinstance(encoded, TooLongError)
            else EncodedResponse(item["key"], [encoded.token_ids], encoded.cut)
            for item, encoded in zip(items, encode_all(self._tokenizer, pairs, self._max_length), strict=True)
        ]

    def scores(self, logits: Logits) -> dict[str, float]:
        """The probability of each label, in beaver-dam's order."""
        (label_logits,) = logits
        probabilities = dict(zip(self._labels, expit(label_logits).tolist(), strict=True))
        return {label: probabilities[label] for label in LABELS}


def judgements(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Judge responses; see :func:`monolora.eval.judges.model_judge.judge_responses`.

    Raises:
        InputError: if the weights are damaged.
        RunError: if the engine does not start.
    """
    settings = job["settings"]
    # Truncation drops the end of the response, whatever side the checkpoint's tokenizer would truncate.
    tokenizer = load_tokenizer(settings["folder"], truncation_side="right")
    judge_format = BeaverDamFormat(tokenizer, settings["max_length"], settings["labels"])
    yield from judge_responses(job, judge_format, make_backend(settings).classifier_logits)
