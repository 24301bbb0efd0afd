"""The first stage: every model answers every prompt, and its sparsity is measured on them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from monolora.data.prompt_sets import PromptSet, content_key
from monolora.errors import InputError
from monolora.eval.models import Subject, by_engine, token_ids
from monolora.eval.plan import Plan, PlannedModel
from monolora.eval.process import results_of
from monolora.eval.records import OK, Measurement, Response
from monolora.eval.settings import Settings
from monolora.eval.store import Store
from monolora.hub import load_config
from monolora.terminal import kept, tracked
from monolora.vllm.versions import check_vllm

LOG = Path("logs", "generate.log")
SPARSITY_LOG = Path("logs", "sparsity.log")
DRIFT_LOG = Path("logs", "drift.log")


class Item(NamedTuple):
    """A prompt for a model, as an engine gets it.

    Attributes:
        key: of the response.
        prompt: key of the prompt.
        subject: the model.
        token_ids: of the prompt.
        max_new_tokens: of the response.
        cut: whether the prompt had to be cut.
    """

    key: str
    prompt: str
    subject: Subject
    token_ids: list[int]
    max_new_tokens: int
    cut: bool


def engine_of(settings: Settings) -> str:
    """The engine that generates.

    Raises:
        InputError: if vLLM is asked for and cannot be had.
    """
    if settings.engine == "vllm":
        check_vllm()
    if settings.engine != "auto":
        return settings.engine
    return "vllm" if importlib.util.find_spec("vllm") else "hf"


def check_can_answer(settings: Settings, models: Sequence[Subject]) -> None:
    """Refuse what an engine cannot do, before anything is asked.

    Raises:
        InputError: for whole models beside the base on a server, and for vLLM's own modes elsewhere.
    """
    engine = engine_of(settings)
    whole = next((each.name for each in models if each.kind == "model"), None)
    if engine == "server" and whole is not None:
        raise InputError(
            f"--engine server: each endpoint serves the base and its adapters, and {whole} is a whole model. Evaluate "
            "it in a run of its own, as --model; or all of them with another engine."
        )
    if settings.batch_invariant and engine != "vllm":
        raise InputError(f"--batch-invariant is a mode of vLLM, and the engine is {engine}. Leave it out.")


def items_of(settings: Settings, subject: Subject, prompts: PromptSet, today: date) -> list[Item]:
    """All prompts of a set for one model, on the day that its chat template is told.

    Raises:
        InputError: if the responses alone would fill the model's context.
    """
    most = prompts.max_new_tokens or settings.max_new_tokens
    context = settings.max_model_len or _context(subject)
    room = context - most
    if room < 1:
        raise InputError(
            f"{subject.path} has a context of {context} tokens, and responses of {most} leave no room for a prompt. "
            "Lower --max-new-tokens."
        )
    generation = {"engine": engine_of(settings), "dtype": settings.dtype, "max_new_tokens": most}
    if settings.temperature > 0:
        generation |= {"temperature": settings.temperature, "top_p": settings.top_p, "seed": settings.seed}
    if settings.batch_invariant:
        generation["batch_invariant"] = True
    made = []
    prompt_ids = token_ids(subject, prompts, today, settings.chat_template_path)
    for prompt, whole in zip(prompts.prompts, prompt_ids, strict=True):
        ids = whole[-room:]
        key = content_key("response", ids, subject.identity, generation)
        made.append(Item(key, prompt.key, subject, ids, most, cut=len(ids) < len(whole)))
    return made


def _context(subject: Subject) -> int:
    """The most tokens that the model takes.

    Raises:
        InputError: if its config does not say.
    """
    config = load_config(subject.folder).get_text_config().to_dict()
    if "max_position_embeddings" not in config:
        raise InputError(f"The config of {subject.path} does not say how long its context is. Give --max-model-len.")
    return int(config["max_position_embeddings"])


def planned(
    settings: Settings, models: Sequence[Subject], sets: Sequence[PromptSet], today: date
) -> tuple[Plan, list[Item]]:
    """The plan of a run, and all items of it."""
    items = {each.name: {subject.name: items_of(settings, subject, each, today) for subject in models} for each in sets}
    keys = {name: {model: [item.key for item in row] for model, row in rows.items()} for name, rows in items.items()}
    safety = next((each.name for each in sets if each.purpose == "safety"), None)  # alignment sparsity is of one set
    sparsity = {
        each.name: {
            subject.name: content_key("sparsity", subject.identity, settings.dtype, keys[each.name][subject.name])
            for subject in models
            if subject.adapter is not None
        }
        for each in sets
        if each.name == safety or each.purpose == "task"
    }
    base = models[0].name
    followed = keys[safety][base][: settings.drift] if safety and settings.drift else []
    drift = {
        subject.name: content_key("drift", subject.identity, settings.dtype, followed)
        for subject in models[1:]
        if followed
    }
    listed = [PlannedModel(each.name, each.kind, each.path, each.identity, each.step) for each in models]
    return Plan(list(sets), listed, keys, sparsity, drift, today.isoformat()), [
        item for rows in items.values() for row in rows.values() for item in row
    ]


def generate(settings: Settings, store: Store, items: Sequence[Item]) -> None:
    """Answer what has no answer yet."""
    by_key = {item.key: item for item in items}
    engine = engine_of(settings)
    for folder, group in by_engine([*dict.fromkeys(item.subject for item in items)]).items():
        mine = [item for item in by_key.values() if item.subject in group]
        todo = [item for item in mine if item.key not in store.responses]
        what = f"Answers of {', '.join(each.name for each in group)}"
        kept(what, len(mine) - len(todo), len(mine))
        if not todo:
            continue
        rows = results_of(
            f"monolora.eval.engines.{engine}:answers", _job(settings, folder, mine, store), Path(settings.out) / LOG
        )
        with tracked(what, len(todo)) as step:
            for row in rows:
                if "canary" in row:
                    store.measurements.add(_canary(row["canary"], group))
                    continue
                item = by_key[row["key"]]
                store.responses.add(
                    Response(**row | {"prompt": item.prompt, "model": item.subject.identity, "cut": item.cut})
                )
                step()


def _canary(row: dict[str, Any], group: Sequence[Subject]) -> Measurement:
    asked = next(each for each in group if row["adapter"] == (None if each.adapter is None else each.name))
    return Measurement(content_key("canary", asked.identity, row["dtype"]), "canary", asked.identity, row)


def _job(settings: Settings, folder: str, items: Sequence[Item], store: Store) -> dict[str, Any]:
    subjects = [*dict.fromkeys(item.subject for item in items)]
    return {
        "model": folder,
        "adapters": {each.name: each.adapter for each in subjects if each.adapter is not None},
        "models": {each.name: each.path if each.kind == "base" else each.name for each in subjects},
        "endpoints": list(settings.endpoint),
        "items": [
            {
                "key": item.key,
                "model": item.subject.name,
                "adapter": None if item.subject.adapter is None else item.subject.name,
                "token_ids": item.token_ids,
                "max_new_tokens": item.max_new_tokens,
            }
            for item in items
        ],
        "done": [item.key for item in items if item.key in store.responses],
        "settings": engine_settings(settings),
    }


def engine_settings(settings: Settings) -> dict[str, Any]:
    """What engines read of the settings."""
    names = (
        "dtype", "seed", "temperature", "top_p", "batch_size", "max_model_len", "max_num_seqs",
        "gpu_memory_utilization", "tensor_parallel_size", "batch_invariant", "concurrency", "retries", "api_key_env",
    )  # fmt: skip
    chosen = {name: getattr(settings, name) for name in names}
    return chosen | {"canary": not settings.skip_canary, "timeout_s": settings.timeout}


def measure_sparsity(settings: Settings, store: Store, plan: Plan, items: Sequence[Item]) -> None:
    """Measure each adapter's sparsity on the prompts of each set, where that is not known yet."""
    by_key = {item.key: item for item in items}
    jobs = []
    for name, models in plan.sparsity.items():
        for model, key in models.items():
            if key not in store.measurements:
                rows = [by_key[each] for each in plan.keys[name][model]]
                subject = rows[0].subject
                jobs.append(
                    {"key": key, "model": subject.folder, "adapter": subject.adapter, "identity": subject.identity,
                     "token_ids": [item.token_ids for item in rows]}
                )  # fmt: skip
    if not jobs:
        return
    job = {"jobs": jobs, "dtype": settings.dtype, "batch_size": settings.batch_size}
    with tracked("Sparsity", len(jobs)) as step:
        for row in results_of("monolora.eval.sparsity:measured", job, Path(settings.out) / SPARSITY_LOG):
            store.measurements.add(Measurement(**row))
            step()


def measure_drift(
    settings: Settings, store: Store, plan: Plan, models: Sequence[Subject], items: Sequence[Item]
) -> None:
    """Measure how far each model is from the base along the base's own answers, where that is not known yet."""
    base, *others = models
    jobs = [
        {"key": plan.drift[each.name], "identity": each.identity, "model": each.folder, "adapter": each.adapter}
        for each in others
        if each.name in plan.drift and plan.drift[each.name] not in store.measurements
    ]
    if not jobs:
        return
    safety = next(each.name for each in plan.sets if each.purpose == "safety")
    by_key = {item.key: item for item in items}
    answers = [store.responses[key] for key in plan.keys[safety][base.name][: settings.drift]]
    rows = [
        {"key": each.key, "token_ids": by_key[each.key].token_ids, "text": each.text, "is_ended": each.finish == "stop"}
        for each in answers
        if each.status == OK
    ]
    job = {
        "jobs": jobs, "base": base.folder, "rows": rows, "dtype": settings.dtype, "batch_size": settings.batch_size,
    }  # fmt: skip
    with tracked("Drift", len(jobs)) as step:
        for row in results_of("monolora.eval.drift:measured", job, Path(settings.out) / DRIFT_LOG):
            store.measurements.add(Measurement(**row))
            step()
