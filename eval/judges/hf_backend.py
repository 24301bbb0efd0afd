"""Judges' logits by transformers, in batches sorted by length that do not depend on what is judged already.

Shapes: B calls of a batch, T tokens, V vocabulary, L labels, K answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch

from monolora.errors import InputError, RunError
from monolora.eval.batches import fixed_batches
from monolora.eval.judges.base import Logits, Readable, padding_token, unpadded
from monolora.hub import load_causal_lm, load_classifier, load_config
from monolora.inference import evaluating, padded
from monolora.units import input_device

_Forward = Callable[[Sequence[list[int]]], torch.Tensor]


def next_token_logits(
    settings: Mapping[str, Any], rows: Sequence[Readable], done: set[str]
) -> Iterator[tuple[str, Logits]]:
    """Logits of ``settings["answers"]`` after each call.

    Calls are padded on the left: so the last position is the same for all, and only its V logits are computed.
    """
    answers = settings["answers"]
    model = load_causal_lm(settings["folder"], **_loading(settings))

    def forward(calls: Sequence[list[int]]) -> torch.Tensor:
        ids_BT, mask_BT = (each.to(input_device(model)) for each in padded(calls, 0, left=True))
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        output = model(ids_BT, attention_mask=mask_BT, position_ids=positions_BT, logits_to_keep=1, use_cache=False)
        return cast(torch.Tensor, output.logits[:, -1, answers])

    with evaluating(model):
        yield from _in_batches(rows, done, settings["batch_size"], forward)


def classifier_logits(
    settings: Mapping[str, Any], rows: Sequence[Readable], done: set[str]
) -> Iterator[tuple[str, Logits]]:
    """Logits of all labels, from the position that the class itself pools: the last that is no padding, or the first.

    A checkpoint without a padding token reads one call at a time, as its class demands.
    """
    model = _load_classifier(settings).eval()
    pad = padding_token(settings["folder"], model.config)
    model.config.pad_token_id = pad

    def forward(calls: Sequence[list[int]]) -> torch.Tensor:
        bare = [unpadded(call, pad) for call in calls]
        ids_BT, mask_BT = (each.to(input_device(model)) for each in padded(bare, pad or 0, left=False))
        return cast(torch.Tensor, model(ids_BT, attention_mask=mask_BT).logits)

    yield from _in_batches(rows, done, settings["batch_size"] if pad is not None else 1, forward)


def _in_batches(
    rows: Sequence[Readable], done: set[str], batch_size: int, forward: _Forward
) -> Iterator[tuple[str, Logits]]:
    """Each row's calls stay together, so a batch has ``batch_size`` calls where a row has fewer than that."""
    size = max(1, batch_size // len(rows[0].calls))
    lengths = {row.key: max(map(len, row.calls)) for row in rows}
    for batch in fixed_batches([row._asdict() for row in rows], done, size, lambda row: lengths[row["key"]]):
        logits = iter(_computed(forward, [call for row in batch.rows for call in row["calls"]]))
        for row in batch.rows:
            of_row = [next(logits) for _ in row["calls"]]
            if row["key"] in batch.wanted:
                yield row["key"], of_row


@torch.inference_mode()
def _computed(forward: _Forward, calls: Sequence[list[int]]) -> list[list[float]]:
    try:
        return cast("list[list[float]]", forward(calls).double().tolist())
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"The device has no memory for {len(calls)} texts at once. Lower the judges' batch size."
        ) from error


def _load_classifier(settings: Mapping[str, Any]) -> Any:
    """The classifier in ``settings["folder"]``.

    Raises:
        InputError: if its weights are damaged, or not all there: transformers would draw a missing head at random.
    """
    folder = settings["folder"]
    model, found = load_classifier(folder, ignore_mismatched_sizes=True, **_loading(settings))
    absent = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if absent:
        raise InputError(
            f"The weights in {folder} lack {absent[0]} ({len(absent)} such), or have it in another shape than its "
            "config.json says. Copy the model again."
        )
    return model


def _loading(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How to load the weights: dtype, device, and an attention that computes what the model means.

    Gemma 2 caps its attention logits; of transformers' kernels for CPUs and GPUs, the default leaves the cap out in
    silence, and the plain one has it.
    """
    options = {"dtype": settings["dtype"]}
    if settings["device"] is not None:
        options["device_map"] = settings["device"]
    elif torch.cuda.is_available():
        options["device_map"] = "auto"
    if load_config(settings["folder"]).to_dict().get("attn_logit_softcapping") is not None:
        options["attn_implementation"] = "eager"
    return options
