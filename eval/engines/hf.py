"""Answers by transformers: slower than vLLM, and works wherever transformers does.

Batches are made of all rows of a model, sorted by length, whether they are answered already or not. So a run that was
killed and goes on computes in the same batches as one that was not, and gives the same answers, bit for bit.

Shapes: B rows of a batch, T tokens.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from monolora.adapters import load_adapted
from monolora.eval.batches import fixed_batches
from monolora.eval.records import own_seed
from monolora.hub import check_vocabulary, load_causal_lm, load_tokenizer, on_gpus
from monolora.inference import GREEDY, evaluating, padded
from monolora.units import input_device


def answers(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """As :func:`monolora.eval.engines.vllm.answers`, one model after the other, and without the canary."""
    done, settings = set(job["done"]), job["settings"]
    adapters: list[str | None] = list(dict.fromkeys(item["adapter"] for item in job["items"]))
    for name in adapters:
        batches = fixed_batches(
            [item for item in job["items"] if item["adapter"] == name],
            done,
            settings["batch_size"],
            lambda item: (len(item["token_ids"]) + item["max_new_tokens"], len(item["token_ids"])),
        )
        if batches:
            yield from _of_one_model(job["model"], None if name is None else job["adapters"][name], batches, settings)


def _of_one_model(
    base: str, adapter: str | None, batches: Sequence[Any], settings: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    model: Any
    if adapter is None:
        model = load_causal_lm(base, dtype=settings["dtype"], **on_gpus()).eval()
        tokenizer = load_tokenizer(base)
        check_vocabulary(model, tokenizer, base)
    else:
        model, tokenizer = load_adapted(adapter, base, dtype=settings["dtype"])
    with evaluating(model):
        for batch in batches:
            made = _generate(model, tokenizer, batch.rows, settings)
            yield from (row for row in made if row["key"] in batch.wanted)
    del model
    gc.collect()


@torch.inference_mode()
def _generate(
    model: Any, tokenizer: PreTrainedTokenizerBase, items: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids_BT, mask_BT = padded([item["token_ids"] for item in items], pad, left=True)
    device = input_device(model)
    sampling = GREEDY
    if settings["temperature"] > 0:
        # For each batch: a run that goes on draws what it would have drawn.
        torch.manual_seed(own_seed(settings["seed"], [item["token_ids"] for item in items]))
        sampling = GREEDY | {
            "do_sample": True, "temperature": settings["temperature"], "top_p": settings["top_p"], "top_k": 0,
        }  # fmt: skip
    output_BT = model.generate(
        input_ids=ids_BT.to(device),
        attention_mask=mask_BT.to(device),
        max_new_tokens=max(item["max_new_tokens"] for item in items),
        pad_token_id=pad,
        **sampling,
    )
    ends = _end_tokens(model)
    return [
        _answer(item, row, tokenizer, ends)
        for item, row in zip(items, output_BT[:, ids_BT.shape[1] :].tolist(), strict=True)
    ]


def _answer(
    item: Mapping[str, Any], tokens: list[int], tokenizer: PreTrainedTokenizerBase, ends: set[int]
) -> dict[str, Any]:
    tokens = tokens[: item["max_new_tokens"]]
    stop = next((place for place, token in enumerate(tokens) if token in ends), None)
    kept = tokens if stop is None else tokens[: stop + 1]
    return {
        "key": item["key"],
        "text": tokenizer.decode(kept, skip_special_tokens=True),
        "tokens": len(kept),
        "finish": "length" if stop is None else "stop",
    }


def _end_tokens(model: Any) -> set[int]:
    """After which generation ends; the config has one, several, or none."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}
