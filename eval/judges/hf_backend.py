"""Judges' logits from transformers, in batches that do not depend on what is judged already.

Shapes: B calls of a batch, T tokens, V vocabulary, L labels, K answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch

from monolora.errors import InputError, RunError
from monolora.eval.engines.hf import fixed_batches
from monolora.eval.judges.backend import EncodedResponse, Logits, padding_token, strip_padding
from monolora.hub import load_causal_lm, load_classifier, load_config
from monolora.inference import evaluating, padded
from monolora.units import input_device

_Forward = Callable[[Sequence[list[int]]], torch.Tensor]


class HfBackend:
    """A :class:`~monolora.eval.judges.backend.Backend`.

    Args:
        settings: ``folder``, ``dtype``, ``device``, ``batch_size``, and ``answers`` for next-token logits.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    def next_token_logits(self, responses: Sequence[EncodedResponse], done: set[str]) -> Iterator[tuple[str, Logits]]:
        """Logits of the answers, ``(B, K)`` a batch.

        Calls are padded on the left, so that all end at the last position and only its V logits are computed.
        """
        model = load_causal_lm(self._settings["folder"], **self._load_options())
        answers, device = self._settings["answers"], input_device(model)

        def forward(calls: Sequence[list[int]]) -> torch.Tensor:
            # Any token will do as padding: it is masked.
            ids_BT, mask_BT = (tensor.to(device) for tensor in padded(calls, 0, left=True))
            positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)  # each call's first token is at position 0
            output = model(ids_BT, attention_mask=mask_BT, position_ids=positions_BT, logits_to_keep=1, use_cache=False)
            return cast(torch.Tensor, output.logits[:, -1, answers])

        with evaluating(model):
            yield from _in_batches(responses, done, self._settings["batch_size"], forward)

    def classifier_logits(self, responses: Sequence[EncodedResponse], done: set[str]) -> Iterator[tuple[str, Logits]]:
        """Logits of the labels, ``(B, L)`` a batch, at the position that the model's class pools.

        Decoders pool the last token that is not padding, encoders the first token; with padding on the right, both
        find it. Without a padding token the class accepts only batches of one call.
        """
        model = self._load_classifier().eval()
        pad = padding_token(self._settings["folder"], model.config)
        model.config.pad_token_id = pad
        device = input_device(model)

        def forward(calls: Sequence[list[int]]) -> torch.Tensor:
            stripped = [strip_padding(call, pad) for call in calls]
            ids_BT, mask_BT = (tensor.to(device) for tensor in padded(stripped, pad or 0, left=False))
            return cast(torch.Tensor, model(ids_BT, attention_mask=mask_BT).logits)

        yield from _in_batches(responses, done, self._settings["batch_size"] if pad is not None else 1, forward)

    def _load_classifier(self) -> Any:
        """The classifier.

        Raises:
            InputError: if weights are damaged or missing: transformers would initialize a missing head at random.
        """
        folder = self._settings["folder"]
        model, loading = load_classifier(folder, ignore_mismatched_sizes=True, **self._load_options())
        missing = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
        if missing:
            raise InputError(
                f"The weights in {folder} lack {missing[0]} ({len(missing)} such), or have it in another shape than "
                "its config.json says. Copy the model again."
            )
        return model

    def _load_options(self) -> dict[str, Any]:
        """Options of ``from_pretrained``: dtype, device, and an attention kernel that computes what the model means.

        Gemma 2 caps its attention logits. transformers' default kernel silently omits the cap; the eager one has it.
        """
        options = {"dtype": self._settings["dtype"]}
        if self._settings["device"] is not None:
            options["device_map"] = self._settings["device"]
        elif torch.cuda.is_available():
            options["device_map"] = "auto"
        if load_config(self._settings["folder"]).to_dict().get("attn_logit_softcapping") is not None:
            options["attn_implementation"] = "eager"
        return options


def _in_batches(
    responses: Sequence[EncodedResponse], done: set[str], batch_size: int, forward: _Forward
) -> Iterator[tuple[str, Logits]]:
    """The logits of each response. Its calls stay in one batch; ``batch_size`` counts calls."""
    responses_per_batch = max(1, batch_size // len(responses[0].calls))
    lengths = {response.key: max(map(len, response.calls)) for response in responses}
    rows = [response._asdict() for response in responses]
    for batch in fixed_batches(rows, done, responses_per_batch, lambda row: lengths[row["key"]]):
        logits = iter(_logits(forward, [call for row in batch.rows for call in row["calls"]]))
        for row in batch.rows:
            row_logits = [next(logits) for _ in row["calls"]]
            if row["key"] in batch.wanted:
                yield row["key"], row_logits


@torch.inference_mode()
def _logits(forward: _Forward, calls: Sequence[list[int]]) -> list[list[float]]:
    try:
        return cast("list[list[float]]", forward(calls).double().tolist())
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"The device has no memory for {len(calls)} texts at once. Lower the judges' batch size."
        ) from error
