"""Measurements of the models themselves, by transformers: sparsity and drift. No judge has a say in them.

Sparsity is the share of an adapter's units that are zero on the tokens of given prompts (paper, table 2: alignment and
task sparsity).

Drift says how far a finetuned model is from its base. Along an answer of the base, token by token, both predict the
next token; the drift is the Kullback-Leibler divergence KL(base || finetuned) of the two, in nats per token. In
the same pass the tokens of prompt and answer are counted on which every unit of the adapter is zero: there it adds
nothing.

The refusal margin is the log-odds that a model opens with a refusal (:func:`monolora.refusals.margin`). Coherence is
the likelihood of a model's answers under the base: incoherent text is not safe because no judge flags it.

The ``measure_…`` functions are called by the stage ``generate``. They start workers, which call the others.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

from peft.tuners.lora.layer import LoraLayer
from transformers import PreTrainedTokenizerBase

from monolora.adapters import adapter_tokenizer, load_adapted
from monolora.data.chat_template import Split
from monolora.drift import answer_drifts
from monolora.eval.generate import Item
from monolora.eval.models import EvaluatedModel
from monolora.eval.plan import Plan
from monolora.eval.settings import Settings
from monolora.eval.store import OK, Measurement, Store
from monolora.hub import load_causal_lm, on_gpus
from monolora.inference import Inference, evaluating
from monolora.refusals import margin as refusal_margin
from monolora.refusals import opening_ids
from monolora.terminal import tracked
from monolora.workers import worker_rows

_SPARSITY_LOG = Path("logs", "sparsity.log")
_DRIFT_LOG = Path("logs", "drift.log")
_MARGIN_LOG = Path("logs", "margin.log")
_COHERENCE_LOG = Path("logs", "coherence.log")


def measure_sparsity(settings: Settings, store: Store, plan: Plan, items: Sequence[Item]) -> None:
    """Measure each adapter's sparsity on the prompts of each planned set, unless it is measured already."""
    items_by_key = {item.key: item for item in items}
    jobs = []
    for set_name, measurement_keys in plan.sparsity.items():
        for model_name, key in measurement_keys.items():
            if key not in store.measurements:
                set_items = [items_by_key[response_key] for response_key in plan.keys[set_name][model_name]]
                model = set_items[0].model
                jobs.append(_of_model(key, model) | {"token_ids": [item.token_ids for item in set_items]})
    job = {"jobs": jobs, "dtype": settings.dtype, "batch_size": settings.batch_size}
    _measure("Sparsity", "monolora.eval.measurements:sparsity", job, Path(settings.out) / _SPARSITY_LOG, store)


def measure_drift(
    settings: Settings, store: Store, plan: Plan, models: Sequence[EvaluatedModel], items: Sequence[Item]
) -> None:
    """Measure each model's drift along the base's answers to each planned set, unless it is measured already."""
    base, *finetuned = models
    jobs = [
        _of_model(by_model[model.name], model) | {"set": name}
        for model in finetuned  # which is loaded once for all of its sets
        for name, by_model in plan.drift.items()
        if by_model[model.name] not in store.measurements
    ]
    items_by_key = {item.key: item for item in items}
    rows = {
        name: _answer_rows(store, items_by_key, plan.keys[name][base.name][: settings.drift])
        for name in {job["set"] for job in jobs}
    }
    job = {
        "jobs": jobs, "base": base.folder, "rows": rows, "dtype": settings.dtype, "batch_size": settings.batch_size,
    }  # fmt: skip
    _measure("Drift", "monolora.eval.measurements:drift", job, Path(settings.out) / _DRIFT_LOG, store)


def measure_margin(
    settings: Settings, store: Store, plan: Plan, models: Sequence[EvaluatedModel], items: Sequence[Item]
) -> None:
    """Measure each model's refusal margin on the first prompts of each planned set, unless it is measured already."""
    items_by_key = {item.key: item for item in items}
    jobs = []
    for model in models:  # which is loaded once for all of its sets
        for name, by_model in plan.margin.items():
            if by_model[model.name] not in store.measurements:
                asked = [items_by_key[key] for key in plan.keys[name][model.name][: settings.refusal_margin]]
                prompts = {item.prompt: item.token_ids for item in asked}
                jobs.append(_of_model(by_model[model.name], model) | {"prompts": prompts})
    job = {"jobs": jobs, "dtype": settings.dtype, "batch_size": settings.batch_size}
    _measure("Refusal margin", "monolora.eval.measurements:margin", job, Path(settings.out) / _MARGIN_LOG, store)


def measure_coherence(
    settings: Settings, store: Store, plan: Plan, models: Sequence[EvaluatedModel], items: Sequence[Item]
) -> None:
    """Measure the likelihood of each model's first answers under the base, unless it is measured already."""
    items_by_key, base = {item.key: item for item in items}, models[0]
    jobs = [
        {
            "key": by_model[model.name], "identity": model.identity,
            "rows": _answer_rows(store, items_by_key, plan.keys[name][model.name][: settings.coherence]),
        }
        for name, by_model in plan.coherence.items()
        for model in models
        if by_model[model.name] not in store.measurements
    ]  # fmt: skip
    job = {"jobs": jobs, "base": base.folder, "dtype": settings.dtype, "batch_size": settings.batch_size}
    _measure("Coherence", "monolora.eval.measurements:coherence", job, Path(settings.out) / _COHERENCE_LOG, store)


def _of_model(key: str, model: EvaluatedModel) -> dict[str, Any]:
    """The part of a measurement's job that says what is loaded."""
    return {"key": key, "model": model.folder, "adapter": model.adapter, "identity": model.identity}


def _answer_rows(store: Store, items_by_key: Mapping[str, Item], keys: Sequence[str]) -> list[dict[str, Any]]:
    """The valid ones of the base's answers with these keys."""
    responses = [store.responses[key] for key in keys]
    return [
        {
            "key": response.key,
            "token_ids": items_by_key[response.key].token_ids,
            "text": response.text,
            "is_ended": response.finish == "stop",
        }
        for response in responses
        if response.status == OK
    ]


def _measure(title: str, target: str, job: Mapping[str, Any], log: Path, store: Store) -> None:
    """Store what a worker measures; it is not started for nothing."""
    if not job["jobs"]:
        return
    with tracked(title, len(job["jobs"])) as step:
        for row in worker_rows(target, job, log):
            store.measurements.add(Measurement(**row))
            step()


def sparsity(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure the sparsity of adapters, one after the other.

    Args:
        job: ``jobs``, each with ``key``, ``model`` (folder of the base), ``adapter`` (folder), ``identity`` and
            ``token_ids`` of the prompts; ``dtype``; ``batch_size``.

    Yields:
        Fields of a ``Measurement``. An adapter that is neither LoRA nor MonoLoRA has no units: its values are empty.
    """

    def folders(measurement: Mapping[str, Any]) -> tuple[str, str]:
        return measurement["model"], measurement["adapter"]

    # Sorted, so that an adapter is loaded once for all of its sets.
    for (base, adapter), group in groupby(sorted(job["jobs"], key=folders), key=folders):
        model, tokenizer = load_adapted(adapter, base, dtype=job["dtype"])
        has_units = any(isinstance(module, LoraLayer) for module in model.modules())
        inference = Inference(model=model, tokenizer=tokenizer, batch_size=job["batch_size"])
        for measurement in group:
            values = inference.sparsity(measurement["token_ids"])._asdict() if has_units else {}
            yield {
                "key": measurement["key"], "kind": "sparsity", "model": measurement["identity"], "values": values,
            }  # fmt: skip
        del model, inference
        gc.collect()  # the next model needs the memory


def drift(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure the drift of models, one after the other.

    Args:
        job: ``jobs``, those of one model in a row, each with ``key``, ``identity``, ``model`` (the folder that is
            loaded), ``adapter`` (folder, or None for a whole model) and ``set``; ``base`` (folder); ``rows``, by set
            the base's answers, each with ``key``, ``token_ids`` of the prompt, ``text`` and ``is_ended`` (by an end
            token); ``dtype``; ``batch_size``.

    Yields:
        Fields of a ``Measurement``, whose values are by the key of the answer: ``kl``, nats per token; and of models
        with units ``silent``, the share of tokens on which all are zero.
    """

    def folders(measurement: Mapping[str, Any]) -> tuple[str, str | None]:
        return measurement["model"], measurement["adapter"]

    tokenizer = adapter_tokenizer(job["base"], job["base"])
    splits = {
        name: {row["key"]: split for row in rows if (split := _split(row, tokenizer)).answer}
        for name, rows in job["rows"].items()
    }
    for _, group in groupby(job["jobs"], key=folders):
        measurements = list(group)
        base, finetuned, as_base = _load_pair(measurements[0], job["base"], job["dtype"])
        base_inference, finetuned_inference = (
            Inference(model=model, tokenizer=tokenizer, batch_size=job["batch_size"]) for model in (base, finetuned)
        )
        for measurement in measurements:
            by_key = splits[measurement["set"]]
            keys, answers = list(by_key), list(by_key.values())
            drifts = list(answer_drifts(base_inference, finetuned_inference, as_base, answers))
            kl = {keys[drift.number]: drift.kl for drift in drifts}
            silent = {keys[drift.number]: drift.silent for drift in drifts if drift.silent is not None}
            yield {
                "key": measurement["key"], "kind": "drift", "model": measurement["identity"],
                "values": {"kl": kl} | ({"silent": silent} if silent else {}),
            }  # fmt: skip
        del base, finetuned, base_inference, finetuned_inference, as_base
        gc.collect()  # the next model needs the memory


def margin(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure the refusal margin of models, one after the other.

    Args:
        job: ``jobs``, those of one model in a row, each with ``key``, ``identity``, ``model`` (folder), ``adapter``
            (folder, or None for a whole model) and ``prompts``, token ids by the prompt's key; ``dtype``;
            ``batch_size``.

    Yields:
        Fields of a ``Measurement``, whose values are by the key of the prompt: ``margin``, in nats.
    """

    def folders(measurement: Mapping[str, Any]) -> tuple[str, str | None]:
        return measurement["model"], measurement["adapter"]

    for (folder, adapter), group in groupby(job["jobs"], key=folders):
        model, tokenizer = _load(folder, adapter, job["dtype"])
        openings = opening_ids(tokenizer)
        inference = Inference(model=model, tokenizer=tokenizer, batch_size=job["batch_size"])
        for measurement in group:
            keys, prompts = zip(*measurement["prompts"].items(), strict=True)
            with evaluating(model):
                log_probs = inference.continuation_log_probs(prompts, openings, "openings of answers")
            values = {"margin": dict(zip(keys, map(refusal_margin, log_probs), strict=True))}
            yield {"key": measurement["key"], "kind": "margin", "model": measurement["identity"], "values": values}
        del model, inference
        gc.collect()  # the next model needs the memory


def coherence(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure the likelihood of answers under the base.

    Args:
        job: ``jobs``, each with ``key``, ``identity`` of the model that answered and ``rows``, its answers as for
            :func:`drift`; ``base`` (folder); ``dtype``; ``batch_size``.

    Yields:
        Fields of a ``Measurement``, whose values are by the key of the answer: ``base_nll``, the negative
        log-probability a token under the base, in nats. Empty answers have none.
    """
    tokenizer = adapter_tokenizer(job["base"], job["base"])
    base = load_causal_lm(job["base"], dtype=job["dtype"], **on_gpus())
    inference = Inference(model=base, tokenizer=tokenizer, batch_size=job["batch_size"])
    for measurement in job["jobs"]:
        splits = {row["key"]: split for row in measurement["rows"] if (split := _split(row, tokenizer)).answer}
        with evaluating(base):
            log_probs = inference.answer_log_probs(list(splits.values()), "likelihood of answers")
        base_nll = {
            key: -log_prob / len(split.answer) for (key, split), log_prob in zip(splits.items(), log_probs, strict=True)
        }
        yield {
            "key": measurement["key"], "kind": "coherence", "model": measurement["identity"],
            "values": {"base_nll": base_nll},
        }  # fmt: skip


def _split(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Split:
    """Prompt and answer. The record has the answer's text, not its token ids, so it is tokenized again."""
    answer = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
    return Split(list(row["token_ids"]), [*answer, *[tokenizer.eos_token_id] * row["is_ended"]])


def _load(folder: str, adapter: str | None, dtype: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """A whole model or, on top of it, an adapter; with its tokenizer."""
    if adapter is not None:
        return load_adapted(adapter, folder, dtype=dtype)
    return load_causal_lm(folder, dtype=dtype, **on_gpus()), adapter_tokenizer(folder, folder)


def _load_pair(measurement: Mapping[str, Any], base_folder: str, dtype: str) -> tuple[Any, Any, Any]:
    """Base and finetuned model, and a context in which the first is the base.

    An adapter and its base are one model in memory, and the context disables the adapter.
    """
    if measurement["adapter"] is not None:
        model, _ = load_adapted(measurement["adapter"], measurement["model"], dtype=dtype)
        return model, model, model.disable_adapter
    base, finetuned = (
        load_causal_lm(folder, dtype=dtype, **on_gpus()) for folder in (base_folder, measurement["model"])
    )
    return base, finetuned, nullcontext
