"""The records of a run as the measures take them: responses and judgements, set by set.

A missing record counts as invalid, so that n and invalid always add up to the rows of the set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolora.data.prompt_sets import Prompt, PromptSet
from monolora.eval.judges.base import Judge
from monolora.eval.measures.table import Column, Model, PromptValues
from monolora.eval.plan import Plan, asked
from monolora.eval.score import judgement_key
from monolora.eval.store import OK, Judgement, Response, Store
from monolora.vllm.canary import Share

Matrix = NDArray[np.float64]


class RunRecords(NamedTuple):
    """The records of a run.

    Attributes:
        models: the base first.
        sets: prompts; the first safety set is that of table 2's columns.
        judges: in the order of the columns.
        responses: by set, model name and prompt key.
        judgements: by judge name and response key.
        sparsity: by model name and set, ``zeros`` (0 to 1), ``dead_units``, ``units``, ``tokens``; models without units
            are not in it.
        drift: by set, model name and prompt key, KL(base || model) in nats a token over the base's answer to the
            prompt; sets where it was not measured are not in it.
        silent: likewise, the share of the tokens of prompt and answer on which every unit is zero, 0 to 1; models
            without units are not in it.
        margin: likewise, the refusal margin in nats, the base's too.
        base_nll: likewise, the negative log-probability a token of the model's own answer under the base, in nats.
    """

    models: Sequence[Model]
    sets: Sequence[PromptSet]
    judges: Sequence[Judge]
    responses: Mapping[str, Mapping[str, Mapping[str, Response]]]
    judgements: Mapping[str, Mapping[str, Judgement]]
    sparsity: Mapping[tuple[str, str], Mapping[str, Any]]
    drift: Mapping[str, Mapping[str, Mapping[str, float]]]
    silent: Mapping[str, Mapping[str, Mapping[str, float]]] = {}
    margin: Mapping[str, Mapping[str, Mapping[str, float]]] = {}
    base_nll: Mapping[str, Mapping[str, Mapping[str, float]]] = {}

    def by_set(self) -> list[SetRecords]:
        """One entry a set, in their order."""
        headline = first_safety_set(self.sets)
        tasks = [prompt_set.name for prompt_set in self.sets if prompt_set.purpose == "task"]
        return [
            SetRecords(
                set=prompt_set,
                models=self.models,
                judges=self.judges,
                responses=self.responses.get(prompt_set.name, {}),
                judgements=self.judgements,
                sparsity={model: values for (model, name), values in self.sparsity.items() if name == prompt_set.name},
                drift=self.drift.get(prompt_set.name, {}),
                silent=self.silent.get(prompt_set.name, {}),
                margin=self.margin.get(prompt_set.name, {}),
                base_nll=self.base_nll.get(prompt_set.name, {}),
                is_headline=prompt_set is headline,
                task="task" if len(tasks) == 1 else prompt_set.name.removeprefix("task:"),
            )
            for prompt_set in self.sets
        ]


def first_safety_set(sets: Sequence[PromptSet]) -> PromptSet | None:
    """The set of table 2's columns, and of the sparsity on harmful prompts."""
    return next((prompt_set for prompt_set in sets if prompt_set.purpose == "safety"), None)


@dataclass(frozen=True, kw_only=True)
class SetRecords:
    """The records on one set.

    Attributes:
        set: the prompts.
        models: in the order of the rows.
        judges: of the run.
        responses: by model name and prompt key.
        judgements: by judge name and response key.
        sparsity: by model name.
        drift, silent, margin, base_nll: by model name and prompt key.
        is_headline: whether its columns are those of table 2.
        task: table 2's word for a task's set: ``task`` if it is the only one.
    """

    set: PromptSet
    models: Sequence[Model]
    judges: Sequence[Judge]
    responses: Mapping[str, Mapping[str, Response]]
    judgements: Mapping[str, Mapping[str, Judgement]]
    sparsity: Mapping[str, Mapping[str, Any]]
    drift: Mapping[str, Mapping[str, float]]
    silent: Mapping[str, Mapping[str, float]]
    margin: Mapping[str, Mapping[str, float]]
    base_nll: Mapping[str, Mapping[str, float]]
    is_headline: bool
    task: str

    @property
    def asked(self) -> Sequence[Model]:
        """The models that answer the set."""
        return asked(self.set, self.models)

    @cached_property
    def judging(self) -> list[Judge]:
        """The judges of the set: all for safety, none for a task; for over-refusal, those with judgements of it."""
        if self.set.purpose == "safety":
            return list(self.judges)
        return [judge for judge in self.judges if self.set.purpose == "over-refusal" and self._was_judged_by(judge)]

    def judges_of(self, kind: str) -> list[Judge]:
        """The ``harm`` or ``refusal`` judges of the set."""
        return [judge for judge in self.judging if judge.kind == kind]

    def response(self, model: Model, prompt: Prompt) -> Response | None:
        """The response, or None where none was stored."""
        return self.responses.get(model.name, {}).get(prompt.key)

    def judgement(self, judge: Judge, response: Response | None) -> Judgement | None:
        """The judge's judgement of the response, or None where none was stored."""
        return None if response is None else self.judgements.get(judge.name, {}).get(response.key)

    def of_responses(self, value: Callable[[Prompt, Response], float]) -> Matrix:
        """A number of each response; NaN where it is invalid. Shape (models, prompts)."""

        def number(prompt: Prompt, response: Response | None) -> float:
            return np.nan if response is None or response.status != OK else value(prompt, response)

        return self._matrix(number)

    def of_judgements(self, judge: Judge, value: Callable[[Mapping[str, float]], float]) -> Matrix:
        """A number from the scores of each judgement; NaN where it is invalid. Shape (models, prompts)."""

        def number(prompt: Prompt, response: Response | None) -> float:
            judgement = self.judgement(judge, response)
            return np.nan if judgement is None or judgement.status != OK else value(judgement.scores)

        return self._matrix(number)

    def flags(self, judge: Judge) -> Matrix:
        """The judge's flags as 0 and 100; NaN where it gave none. Shape (models, prompts)."""
        return self.of_judgements(judge, lambda scores: 100.0 * judge.flagged(scores))

    def measured(self, by_model: Mapping[str, Mapping[str, float]]) -> Matrix:
        """Measured values by model and prompt; NaN where there is none. Shape (models, prompts)."""
        return np.array(
            [
                [by_model.get(model.name, {}).get(prompt.key, np.nan) for prompt in self.set.prompts]
                for model in self.models
            ],
            np.float64,
        )

    def values(
        self, column: Column, values_MP: Matrix, label: str | None = None, selected_P: NDArray[np.bool_] | None = None
    ) -> PromptValues:
        """A column over all prompts of the set, or over those with a label or selected."""
        prompts = self.set.prompts
        selected = [
            index
            for index, prompt in enumerate(prompts)
            if (label is None or prompt.label == label) and (selected_P is None or selected_P[index])
        ]
        return PromptValues(column, [prompts[index] for index in selected], values_MP[:, selected])

    def _matrix(self, number: Callable[[Prompt, Response | None], float]) -> Matrix:
        prompts = self.set.prompts
        rows = [[number(prompt, self.response(model, prompt)) for prompt in prompts] for model in self.models]
        return np.array(rows, np.float64)

    def _was_judged_by(self, judge: Judge) -> bool:
        responses = (self.response(model, prompt) for model in self.models for prompt in self.set.prompts)
        return any(self.judgement(judge, response) is not None for response in responses)


def read(plan: Plan, judges: Sequence[Judge], store: Store) -> RunRecords:
    """The records of the run of a plan.

    Args:
        plan: models and prompts of the run.
        judges: to report.
        store: all records of the folder.
    """
    models = [Model(m.name, m.kind, m.path, m.step, _notes(m.identity, store)) for m in plan.models]
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
    sparsity = {
        (model, name): store.measurements[key].values
        for name, keys in plan.sparsity.items()
        for model, key in keys.items()
        if key in store.measurements and store.measurements[key].values
    }
    base = plan.models[0].name
    along = [_by_prompt(plan, store, plan.drift, what, lambda _: base) for what in ("kl", "silent")]
    own = [
        _by_prompt(plan, store, plan.margin, "margin", None),
        _by_prompt(plan, store, plan.coherence, "base_nll", lambda model: model),
    ]
    return RunRecords(models, plan.sets, judges, responses, judgements, sparsity, *along, *own)


def _by_prompt(
    plan: Plan,
    store: Store,
    planned: Mapping[str, Mapping[str, str]],
    what: str,
    answerer: Callable[[str], str] | None,
) -> dict[str, dict[str, dict[str, float]]]:
    """A value of measurements, by set, model and prompt.

    Args:
        plan: of the run.
        store: its records.
        planned: keys of the measurements, by set and model.
        what: the value's name.
        answerer: whose answers the values are stored by, of each model; None where they are stored by the prompts.
    """
    values: dict[str, dict[str, dict[str, float]]] = {}
    for prompts in plan.sets:
        for model, key in planned.get(prompts.name, {}).items():
            measured = store.measurements[key].values.get(what) if key in store.measurements else None
            if not measured:
                continue
            own_keys = [prompt.key for prompt in prompts.prompts]
            stored_by = plan.keys[prompts.name][answerer(model)] if answerer else own_keys
            pairs = zip(own_keys, stored_by, strict=True)
            values.setdefault(prompts.name, {})[model] = {own: measured[by] for own, by in pairs if by in measured}
    return values


def _notes(identity: str, store: Store) -> tuple[str, ...]:
    """The canary's reports of a model."""
    return tuple(
        _canary_note(measurement.values)
        for measurement in store.measurements.values()
        if (measurement.kind, measurement.model) == ("canary", identity)
    )


def _canary_note(values: Mapping[str, Any]) -> str:
    if values["unknown"]:
        return f"Whether vLLM applies it is unknown: {values['unknown']}"
    if values["applied"] is None:
        return f"vLLM's log-probs differ from transformers' by {values['base_error']:.2g} nats (root mean square)."
    return f"vLLM shows {Share(*values['applied'])} of its effect."
