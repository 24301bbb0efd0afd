"""The third stage's input: the records of a run, found by its plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from monolora.eval.judges import Judge
from monolora.eval.measures.columns import Measured, Whole
from monolora.eval.measures.drift import Drifts
from monolora.eval.measures.entries import entries
from monolora.eval.measures.model import Model
from monolora.eval.measures.sparse import Sparsities
from monolora.eval.measures.table import build, columns_of, gathered
from monolora.eval.plan import Plan
from monolora.eval.records import Judgement, Response
from monolora.eval.score import judgement_key
from monolora.eval.store import Store
from monolora.stats import RESAMPLES
from monolora.vllm.canary import Share


class Known(NamedTuple):
    """What the records say, as :func:`monolora.eval.measures.table.build` takes it."""

    models: list[Model]
    responses: dict[str, dict[str, dict[str, Response]]]
    judgements: dict[str, dict[str, Judgement]]
    sparsity: Sparsities
    drift: Drifts


def measured(
    record: Mapping[str, Any], plan: Plan, judges: Sequence[Judge], store: Store, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All measures of a run, and its prompts with answers and judgements, for the report.

    Args:
        record: ``run.json``.
        plan: what the run asks of whom.
        judges: those to report.
        store: the records.
        seed: of the bootstrap.
    """
    models, responses, judgements, sparsity, drift = _known(plan, judges, store)
    results = build(
        _kept(record) | {"bootstrap": {"resamples": RESAMPLES, "seed": seed}},
        models,
        plan.sets,
        judges,
        responses,
        judgements,
        sparsity,
        drift,
        seed,
    )
    return results, list(entries(models, plan.sets, judges, responses, judgements))


def columns(plan: Plan, judges: Sequence[Judge], store: Store) -> tuple[list[Model], list[Measured | Whole]]:
    """The models of a run and all its columns, value by value, for statistics of one's own."""
    models, responses, judgements, sparsity, drift = _known(plan, judges, store)
    found = gathered(models, plan.sets, responses, judgements)
    return models, columns_of(found, models, judges, sparsity, drift)


def _known(plan: Plan, judges: Sequence[Judge], store: Store) -> Known:
    models = [Model(each.name, each.kind, each.path, each.step, _notes(each.identity, store)) for each in plan.models]
    responses: dict[str, dict[str, dict[str, Response]]] = {
        prompts.name: {model.name: {} for model in plan.models} for prompts in plan.sets
    }
    judgements: dict[str, dict[str, Judgement]] = {judge.name: {} for judge in judges}
    for prompts, model, prompt, key in plan.responses():
        if key in store.responses:
            responses[prompts.name][model.name][prompt.key] = store.responses[key]
            for judge in judges:
                judgement = judgement_key(judge, store.responses[key])
                if judgement in store.judgements:
                    judgements[judge.name][key] = store.judgements[judgement]
    return Known(models, responses, judgements, _sparsity(plan, store), _drift(plan, store))


def _kept(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says of how it was made."""
    return {name: record[name] for name in ("config", "models", "sets", "versions", "machine", "git", "stages")}


def _sparsity(plan: Plan, store: Store) -> dict[tuple[str, str], dict[str, Any]]:
    """By model, and ``alignment`` (the first safety set) or the name of a task's set."""
    found = {}
    safety = next((each.name for each in plan.sets if each.purpose == "safety"), None)
    for name, keys in plan.sparsity.items():
        what = "alignment" if name == safety else name
        for model, key in keys.items():
            if key in store.measurements and store.measurements[key].values:
                found[model, what] = store.measurements[key].values
    return found


def _drift(plan: Plan, store: Store) -> dict[str, dict[str, float]]:
    """By model, and prompt of the first safety set that the base's answer was to."""
    found: dict[str, dict[str, float]] = {}
    safety = next((each for each in plan.sets if each.purpose == "safety"), None)
    for model, key in plan.drift.items():
        if safety is not None and key in store.measurements:
            kl = store.measurements[key].values["kl"]
            answers = zip(safety.prompts, plan.keys[safety.name][plan.models[0].name], strict=True)
            found[model] = {prompt.key: kl[answer] for prompt, answer in answers if answer in kl}
    return found


def _notes(identity: str, store: Store) -> tuple[str, ...]:
    """What the canary saw of a model."""
    return tuple(
        _of_canary(each.values)
        for each in store.measurements.values()
        if (each.kind, each.model) == ("canary", identity)
    )


def _of_canary(values: Mapping[str, Any]) -> str:
    if values["unknown"]:
        return f"Whether vLLM applies it could not be told: {values['unknown']}"
    if values["applied"] is None:
        return f"vLLM's log-probs differ from transformers' by {values['base_error']:.2g} nats (root mean square)."
    return f"vLLM shows {Share(*values['applied'])} of its effect."
