"""How far finetuned models have drifted from their base, on what the base itself answers, by transformers.

Along an answer of the base, token by token, both say what comes next: the drift is the Kullback-Leibler divergence
KL(base || finetuned) of the two, in nats a token. It needs no judge, and no answer of the finetuned model.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from monolora.adapters import adapter_tokenizer, load_adapted
from monolora.data.chat_template import Split
from monolora.hub import load_causal_lm, on_gpus
from monolora.inference import MOST_PLACES, Inference, evaluating

Row = Mapping[str, Any]


def measured(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure models one after the other.

    Args:
        job: ``jobs``, each with ``key``, ``identity``, ``model`` (folder that is loaded) and ``adapter`` (folder, or
            None for a whole model); ``base`` (folder); ``rows``, the base's answers, each with ``key``, ``token_ids``
            of the prompt, ``text`` and ``is_ended`` (with the end token); ``dtype``; ``batch_size``.

    Yields:
        Fields of a ``Measurement``, whose values are ``kl``: nats a token by the key of the answer.
    """
    tokenizer = adapter_tokenizer(job["base"], job["base"])
    splits = {row["key"]: answer for row in job["rows"] if (answer := _split(row, tokenizer)).answer}
    for each in job["jobs"]:
        base, tuned, without = _pair(each, job["base"], job["dtype"])
        of_base, of_tuned = (
            Inference(model=model, tokenizer=tokenizer, batch_size=job["batch_size"]) for model in (base, tuned)
        )
        with evaluating(tuned), evaluating(base):
            kl = dict(_by_answer(of_base, of_tuned, without, splits))
        yield {"key": each["key"], "kind": "drift", "model": each["identity"], "values": {"kl": kl}}
        del base, tuned, of_base, of_tuned, without
        gc.collect()


def _split(row: Row, tokenizer: PreTrainedTokenizerBase) -> Split:
    """The answer's text, tokenized anew."""
    answer = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
    return Split(list(row["token_ids"]), [*answer, *[tokenizer.eos_token_id] * row["is_ended"]])


def _pair(each: Mapping[str, Any], base_folder: str, dtype: str) -> tuple[Any, Any, Any]:
    """Base and finetuned model, and a context in which the base is the base: the two may be one, with an adapter."""
    if each["adapter"] is not None:
        model, _ = load_adapted(each["adapter"], each["model"], dtype=dtype)
        return model, model, model.disable_adapter
    base, tuned = (load_causal_lm(folder, dtype=dtype, **on_gpus()) for folder in (base_folder, each["model"]))
    return base, tuned, nullcontext


def _by_answer(
    base: Inference, tuned: Inference, without: Any, splits: Mapping[str, Split]
) -> Iterator[tuple[str, float]]:
    longest_first = sorted(splits, key=lambda key: -len(splits[key].context) - len(splits[key].answer))
    for keys in _batches(longest_first, splits, base.batch_size):
        chosen = [splits[key] for key in keys]
        with without():
            p = _next_tokens(base, chosen)
        q = _next_tokens(tuned, chosen)
        for key, p_TV, q_TV in zip(keys, p, q, strict=True):
            yield key, float((p_TV.exp() * (p_TV - q_TV)).sum(-1).mean())


def _batches(keys: Sequence[str], splits: Mapping[str, Split], batch_size: int) -> Iterator[list[str]]:
    """So many answers at a time that their distributions fit into memory."""
    batch: list[str] = []
    for key in keys:
        places = sum(len(splits[each].answer) for each in (*batch, key))
        if batch and (len(batch) == batch_size or places > MOST_PLACES):
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch


@torch.inference_mode()
def _next_tokens(inference: Inference, splits: Sequence[Split]) -> list[torch.Tensor]:
    """Log-probabilities of what comes at each place of each answer, ``(T, V)``."""
    places = [range(len(split.context) - 1, len(split.context) + len(split.answer) - 1) for split in splits]
    return inference.log_probs_after([split.context + split.answer for split in splits], places)
