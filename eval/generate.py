"""The stage ``generate``: every model answers every prompt.

What is to be answered is planned first: a :class:`~monolora.eval.plan.Plan` with the keys of all records, and an
:class:`Item` per response. Responses whose keys have a record are not generated again.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

from monolora.data.prompt_sets import PromptSet, content_key, names, set_name
from monolora.errors import InputError
from monolora.eval.models import EvaluatedModel, group_by_folder, token_ids
from monolora.eval.plan import Plan, PlannedModel, asked
from monolora.eval.settings import Settings
from monolora.eval.store import Measurement, Response, Store
from monolora.hub import context_length, load_config
from monolora.patching import check_version
from monolora.refusals import COMPLYING, REFUSING
from monolora.terminal import report_existing, tracked
from monolora.vllm.generation import memory_share
from monolora.workers import Task, parallel_rows, shared_cores

_LOG = Path("logs", "generate.log")


class Item(NamedTuple):
    """A prompt for a model.

    Attributes:
        key: of the response.
        prompt: key of the prompt.
        model: the model.
        token_ids: of the prompt.
        max_new_tokens: of the response.
        cut: whether the prompt was cut to fit the context.
    """

    key: str
    prompt: str
    model: EvaluatedModel
    token_ids: list[int]
    max_new_tokens: int
    cut: bool


def resolve_engine(settings: Settings) -> str:
    """The engine that generates: ``auto`` is vLLM if it is installed, otherwise transformers.

    Raises:
        InputError: if vLLM is requested and unavailable.
    """
    if settings.engine == "vllm":
        check_version("vllm")
    if settings.engine != "auto":
        return settings.engine
    return "vllm" if importlib.util.find_spec("vllm") else "hf"


def check_engine(settings: Settings, models: Sequence[EvaluatedModel]) -> None:
    """Refuse settings that the engine does not support, before anything is generated.

    Raises:
        InputError: for whole models beside the base on a server, for vLLM's own modes on other engines, and for more
            engines than the GPUs are enough for, or than the engine can be started.
    """
    engine = resolve_engine(settings)
    whole = next((model.name for model in models if model.kind == "model"), None)
    if engine == "server" and whole is not None:
        raise InputError(
            f"--engine server: each endpoint serves the base and its adapters, and {whole} is a whole model. Evaluate "
            "it in a run of its own, as --model; or all of them with another engine."
        )
    if settings.batch_invariant and engine != "vllm":
        raise InputError(f"--batch-invariant is a mode of vLLM, and the engine is {engine}. Leave it out.")
    if settings.data_parallel > 1:
        _check_data_parallel(settings, engine)


def _check_data_parallel(settings: Settings, engine: str) -> None:
    if engine == "server":
        raise InputError(
            f"--data-parallel {settings.data_parallel} starts engines in this run, and --engine server starts none. "
            "Leave it out, and give one --endpoint for each server."
        )
    gpus, size = torch.cuda.device_count(), settings.tensor_parallel_size if engine == "vllm" else 1
    if 0 < gpus < settings.data_parallel * size:
        raise InputError(
            f"--data-parallel {settings.data_parallel} needs {settings.data_parallel * size} GPUs, and {gpus} are "
            f"visible. Take --data-parallel {max(1, gpus // size)} or less."
        )


def plan_run(
    settings: Settings, models: Sequence[EvaluatedModel], sets: Sequence[PromptSet], today: date
) -> tuple[Plan, list[Item]]:
    """The plan of a run, and all of its items.

    Args:
        settings: of the run.
        models: the base first.
        sets: the prompts.
        today: the date for chat templates that ask for one.

    Raises:
        InputError: if the responses alone would fill a model's context.
    """
    items = {
        prompts.name: {model.name: _items(settings, model, prompts, today) for model in asked(prompts, models)}
        for prompts in sets
    }
    keys = {
        name: {model_name: [item.key for item in set_items] for model_name, set_items in by_model.items()}
        for name, by_model in items.items()
    }
    planned_models = [PlannedModel(model.name, model.kind, model.path, model.identity, model.step) for model in models]
    plan = Plan(
        list(sets),
        planned_models,
        keys,
        _plan_sparsity(settings, models, sets, keys),
        _plan_drift(settings, models, sets, keys),
        today.isoformat(),
        _plan_margin(settings, models, sets, items),
        _plan_coherence(settings, models, sets, keys),
    )
    return plan, [item for by_model in items.values() for set_items in by_model.values() for item in set_items]


_Keys = dict[str, dict[str, str]]  # of measurements, by set and model
_ResponseKeys = Mapping[str, Mapping[str, list[str]]]


def _first_safety(sets: Sequence[PromptSet]) -> str | None:
    return next((prompts.name for prompts in sets if prompts.purpose == "safety"), None)


def _plan_sparsity(
    settings: Settings, models: Sequence[EvaluatedModel], sets: Sequence[PromptSet], keys: _ResponseKeys
) -> _Keys:
    """On the tasks' prompts and, of safety sets, those of the first."""
    return {
        prompts.name: {
            model.name: content_key("sparsity", model.identity, settings.dtype, keys[prompts.name][model.name])
            for model in models
            if model.adapter is not None
        }
        for prompts in sets
        if prompts.name == _first_safety(sets) or prompts.purpose == "task"
    }


def _plan_drift(
    settings: Settings, models: Sequence[EvaluatedModel], sets: Sequence[PromptSet], keys: _ResponseKeys
) -> _Keys:
    base, *finetuned = models
    drift = {}
    for name in drift_sets(settings, _first_safety(sets)):
        followed = keys[name][base.name][: settings.drift]
        drift[name] = {
            model.name: content_key("drift", model.identity, settings.dtype, followed) for model in finetuned
        }
    return drift


def _plan_margin(
    settings: Settings,
    models: Sequence[EvaluatedModel],
    sets: Sequence[PromptSet],
    items: Mapping[str, Mapping[str, list[Item]]],
) -> _Keys:
    if settings.refusal_margin is None:
        return {}

    def key(model: EvaluatedModel, prompts: PromptSet) -> str:
        asked = [item.token_ids for item in items[prompts.name][model.name][: settings.refusal_margin]]
        return content_key("margin", model.identity, settings.dtype, REFUSING, COMPLYING, asked)

    return {
        prompts.name: {model.name: key(model, prompts) for model in models}
        for prompts in sets
        if prompts.purpose in ("safety", "over-refusal")
    }


def _plan_coherence(
    settings: Settings, models: Sequence[EvaluatedModel], sets: Sequence[PromptSet], keys: _ResponseKeys
) -> _Keys:
    if settings.coherence is None:
        return {}

    def key(model: EvaluatedModel, prompts: PromptSet) -> str:
        answers = keys[prompts.name][model.name][: settings.coherence]
        return content_key("coherence", models[0].identity, settings.dtype, answers)

    return {
        prompts.name: {model.name: key(model, prompts) for model in models}
        for prompts in sets
        if prompts.purpose == "safety"
    }


def drift_sets(settings: Settings, safety: str | None) -> list[str]:
    """The names of the sets over which drift is measured.

    Args:
        settings: of the run.
        safety: name of the first safety set, if any.
    """
    if settings.drift is None:
        return []
    return [*map(set_name, names(settings.drift_sets))] or [name for name in (safety,) if name]


def _items(settings: Settings, model: EvaluatedModel, prompts: PromptSet, today: date) -> list[Item]:
    """All prompts of a set for one model."""
    max_new_tokens = prompts.max_new_tokens or settings.max_new_tokens
    context = settings.max_model_len or _context_length(model)
    max_prompt_tokens = context - max_new_tokens
    if max_prompt_tokens < 1:
        raise InputError(
            f"{model.path} has a context of {context} tokens, and responses of {max_new_tokens} leave no room for a "
            "prompt. Lower --max-new-tokens."
        )
    # Everything besides prompt and model that an answer depends on. Settings that do not apply are left out, so that
    # the seed of a greedy run, for example, does not change its keys.
    generation = {"engine": resolve_engine(settings), "dtype": settings.dtype, "max_new_tokens": max_new_tokens}
    if settings.temperature > 0:
        generation |= {"temperature": settings.temperature, "top_p": settings.top_p, "seed": settings.seed}
    if settings.batch_invariant:
        generation["batch_invariant"] = True
    items = []
    prompt_ids = token_ids(model, prompts, today, settings.chat_template_path)
    for prompt, ids in zip(prompts.prompts, prompt_ids, strict=True):
        # Cut from the left: the end of the prompt is where the template asks for the answer.
        cut_ids = ids[-max_prompt_tokens:]
        key = content_key("response", cut_ids, model.identity, generation)
        items.append(Item(key, prompt.key, model, cut_ids, max_new_tokens, cut=len(cut_ids) < len(ids)))
    return items


def _context_length(model: EvaluatedModel) -> int:
    """The maximum number of tokens of prompt and response.

    Raises:
        InputError: if the model's config does not say.
    """
    length = context_length(load_config(model.folder))
    if length is None:
        raise InputError(f"The config of {model.path} does not say how long its context is. Give --max-model-len.")
    return length


def generate(settings: Settings, store: Store, items: Sequence[Item]) -> None:
    """Generate the responses that have no record yet, and store them."""
    items_by_key = {item.key: item for item in items}
    engine = resolve_engine(settings)
    for folder, models in group_by_folder([*dict.fromkeys(item.model for item in items)]).items():
        group_items = [item for item in items_by_key.values() if item.model in models]
        todo = [item for item in group_items if item.key not in store.responses]
        title = f"Answers of {', '.join(model.name for model in models)}"
        report_existing(title, len(group_items) - len(todo), len(group_items))
        if not todo:
            continue
        job = _job(settings, folder, models, group_items, store)
        tasks = _tasks(job, min(settings.data_parallel, len(todo)), Path(settings.out) / _LOG)
        rows = parallel_rows(f"monolora.eval.engines.{engine}:answers", tasks)
        with tracked(title, len(todo)) as step:
            for row in rows:
                if "canary" in row:
                    store.measurements.add(_canary_measurement(row["canary"], models))
                    continue
                item = items_by_key[row["key"]]
                store.responses.add(
                    Response(**row | {"prompt": item.prompt, "model": item.model.identity, "cut": item.cut})
                )
                step()


def _tasks(job: dict[str, Any], engines: int, log: Path) -> list[Task]:
    """The task of each engine; those of several have an equal part of the GPUs, or of the CPU and its memory."""
    if engines == 1:
        return [Task(job | {"share": (0, 1)}, log)]
    settings, gpus = job["settings"], torch.cuda.device_count()
    if gpus:
        names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        parts, size = names.split(","), gpus // engines
        devices = [",".join(parts[rank * size : (rank + 1) * size]) for rank in range(engines)]
        environments = [{"CUDA_VISIBLE_DEVICES": part} for part in devices]
    else:
        environments = [shared_cores(engines)] * engines
        settings = settings | {"gpu_memory_utilization": settings["gpu_memory_utilization"] or memory_share() / engines}
    return [
        Task(
            job | {"share": (rank, engines), "settings": settings},
            log.with_stem(f"{log.stem}-{rank}") if rank else log,
            environment,
        )
        for rank, environment in enumerate(environments)
    ]


def _canary_measurement(values: dict[str, Any], models: Sequence[EvaluatedModel]) -> Measurement:
    model = next(model for model in models if values["adapter"] == _adapter_name(model))
    return Measurement(content_key("canary", model.identity, values["dtype"]), "canary", model.identity, values)


def _adapter_name(model: EvaluatedModel) -> str | None:
    return None if model.adapter is None else model.name


def _job(
    settings: Settings, folder: str, models: Sequence[EvaluatedModel], items: Sequence[Item], store: Store
) -> dict[str, Any]:
    """The job of an engine. It has the finished items too, because the batches of transformers depend on them."""
    return {
        "model": folder,
        "adapters": {model.name: model.adapter for model in models if model.adapter is not None},
        "models": {model.name: model.path if model.kind == "base" else model.name for model in models},
        "endpoints": list(settings.endpoint),
        "items": [
            {
                "key": item.key,
                "model": item.model.name,
                "adapter": _adapter_name(item.model),
                "token_ids": item.token_ids,
                "max_new_tokens": item.max_new_tokens,
            }
            for item in items
        ],
        "done": [item.key for item in items if item.key in store.responses],
        "settings": engine_settings(settings),
    }


def engine_settings(settings: Settings) -> dict[str, Any]:
    """The settings that engines read."""
    names = (
        "dtype", "seed", "temperature", "top_p", "batch_size", "max_model_len", "max_num_seqs",
        "gpu_memory_utilization", "tensor_parallel_size", "batch_invariant", "concurrency", "retries", "api_key_env",
    )  # fmt: skip
    values = {name: getattr(settings, name) for name in names}
    return values | {"canary": not settings.skip_canary, "timeout_s": settings.timeout}
