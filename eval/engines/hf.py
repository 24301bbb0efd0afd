"""Answers by transformers: slower than vLLM, and available wherever transformers is.

Shapes: B rows of a batch, T tokens.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from monolora.adapters import load_adapted
from monolora.data.prompt_sets import sampling_seed
from monolora.hub import check_vocabulary, load_causal_lm, load_tokenizer, on_gpus
from monolora.inference import evaluating, generate, sampling


def answers(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """As :func:`monolora.eval.engines.vllm.answers`, one model after the other, and without the canary.

    Engines share whole batches, so the rows of several equal those of one.
    """
    done, settings = set(job["done"]), job["settings"]
    rank, engines = job["share"]
    adapters: list[str | None] = list(dict.fromkeys(item["adapter"] for item in job["items"]))
    batches = [
        (adapter, batch)
        for adapter in adapters
        for batch in fixed_batches(
            [item for item in job["items"] if item["adapter"] == adapter],
            done,
            settings["batch_size"],
            lambda item: (len(item["token_ids"]) + item["max_new_tokens"], len(item["token_ids"])),
        )
    ]
    for adapter, group in groupby(batches[rank::engines], key=itemgetter(0)):
        folder = None if adapter is None else job["adapters"][adapter]
        yield from _model_answers(job["model"], folder, [batch for _, batch in group], settings)


class Batch(NamedTuple):
    """Rows that are computed together.

    Attributes:
        rows: all rows, each with its ``key``.
        wanted: keys of the rows that have no result yet. The others only keep the batch what it was.
    """

    rows: list[Mapping[str, Any]]
    wanted: set[str]


def fixed_batches(
    rows: Sequence[Mapping[str, Any]],
    done: Collection[str],
    batch_size: int,
    order: Callable[[Mapping[str, Any]], Any],
) -> list[Batch]:
    """Batches of all rows, the largest first, without the batches that are done completely.

    The rows of a batch influence each other through padding, by rounding. To give the same results bit for bit, a
    resumed run therefore computes the batches of an uninterrupted one, and may compute a finished row again.

    Args:
        rows: all rows of the stage, done or not.
        done: keys of the rows that have a result.
        batch_size: rows per batch.
        order: the sort key, such as the length; ties are broken by the row's key.
    """
    ordered = sorted(rows, key=lambda row: (order(row), row["key"]), reverse=True)
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    wanted = [{row["key"] for row in batch}.difference(done) for batch in batches]
    return [Batch(batch, keys) for batch, keys in zip(batches, wanted, strict=True) if keys]


def _model_answers(
    base: str, adapter: str | None, batches: Sequence[Batch], settings: Mapping[str, Any]
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
            rows = _generate(model, tokenizer, batch.rows, settings)
            yield from (row for row in rows if row["key"] in batch.wanted)
    del model
    gc.collect()  # the next model needs the memory


@torch.inference_mode()
def _generate(
    model: Any, tokenizer: PreTrainedTokenizerBase, items: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    prompts = [item["token_ids"] for item in items]
    if settings["temperature"] > 0:
        # Seeded per batch, so that a resumed run draws what an uninterrupted one would have drawn.
        torch.manual_seed(sampling_seed(settings["seed"], prompts))
    options = sampling(settings["temperature"], settings["top_p"])
    most = max(item["max_new_tokens"] for item in items)
    tokens_BN = generate(model, prompts, pad, max_new_tokens=most, **options)
    end_tokens = _end_tokens(model)
    return [
        _answer(item, tokens, tokenizer, end_tokens) for item, tokens in zip(items, tokens_BN.tolist(), strict=True)
    ]


def _answer(
    item: Mapping[str, Any], tokens: list[int], tokenizer: PreTrainedTokenizerBase, end_tokens: set[int]
) -> dict[str, Any]:
    tokens = tokens[: item["max_new_tokens"]]  # the batch was generated to the longest limit in it
    stop = next((index for index, token in enumerate(tokens) if token in end_tokens), None)
    if stop is not None:
        tokens = tokens[: stop + 1]
    return {
        "key": item["key"],
        "text": tokenizer.decode(tokens, skip_special_tokens=True),
        "tokens": len(tokens),
        "finish": "length" if stop is None else "stop",
    }


def _end_tokens(model: Any) -> set[int]:
    """The tokens that end a response; the config has one, several, or none."""
    end_tokens = model.generation_config.eos_token_id
    return set(end_tokens) if isinstance(end_tokens, list) else {end_tokens}
