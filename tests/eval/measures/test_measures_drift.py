"""Columns measured on the models themselves: drift, silent tokens, refusal margin, NLL under the base."""

from __future__ import annotations

import numpy as np
import pytest

from monolora.eval.measures.results import build
from tests.support.synthetic_run import RUN, make


def test_drift_is_a_mean_over_prompts_and_none_of_the_base() -> None:
    """Where a model has no value for a prompt, that is invalid; models are compared with each other, not with 0."""
    run = make()
    keys = [prompt.key for prompt in run.sets[0].prompts[:5]]
    drift = {"lora": dict(zip(keys, (0.5, 1.0, 1.5, 2.0, 2.5), strict=True)), "mono": dict.fromkeys(keys[1:], 0.25)}
    results = build(RUN, run._replace(drift={run.sets[0].name: drift}))
    name = f"{run.sets[0].name}/drift"
    weights = [prompt.weight for prompt in run.sets[0].prompts[:5]]
    cells = {model: of_model[name] for model, of_model in results["cells"].items()}
    assert cells["base"] is None
    assert cells["lora"]["value"] == pytest.approx(np.average([0.5, 1, 1.5, 2, 2.5], weights=weights))
    assert cells["mono"]["value"] == pytest.approx(0.25)
    assert (cells["mono"]["n"], cells["mono"]["invalid"]) == (sum(weights[1:]), weights[0])
    found = {(each["model"], each["against"]): each for each in results["differences"] if each["column"] == name}
    assert found["lora", "base"]["p"] is None
    assert found["mono", "lora"]["difference"] == pytest.approx(
        0.25 - np.average([1, 1.5, 2, 2.5], weights=weights[1:])
    )
    assert found["mono", "lora"]["p"] is not None
    assert not any(each["id"] == name for each in build(RUN, run)["columns"])


def test_silent_tokens_of_several_sets() -> None:
    """A share of tokens, in percent; more is better where the model is to stay as it is, and not on the task."""
    run = make()
    names = ("beavertails", "task:stories")
    sets = {prompt_set.name: prompt_set for prompt_set in run.sets}
    keys = {name: [prompt.key for prompt in sets[name].prompts[:3]] for name in names}
    silent = {name: {"mono": dict(zip(keys[name], (1.0, 0.5, 0.0), strict=True))} for name in names}
    results = build(RUN, run._replace(silent=silent))
    columns = {column["id"]: column for column in results["columns"]}
    assert [columns[f"{name}/silent"]["better"] for name in names] == ["higher", None]
    for name in names:
        weights = [prompt.weight for prompt in sets[name].prompts[:3]]
        cells = {model: of_model[f"{name}/silent"] for model, of_model in results["cells"].items()}
        assert cells["mono"]["value"] == pytest.approx(np.average([100, 50, 0], weights=weights))
        assert cells["base"] is None
        assert cells["whole"]["value"] is None  # it has no units


def test_margins_and_how_well_they_tell_refusals() -> None:
    """Means over the measured prompts, apart for harmless and unsafe ones; the AUC is one over pairs of prompts."""
    run = make()
    safety, xstest = (next(each for each in run.sets if each.name == name) for name in ("beavertails", "xstest"))
    random = np.random.default_rng(3)
    margin = {
        prompts.name: {
            model.name: {prompt.key: float(random.normal()) for prompt in prompts.prompts[:20]} for model in run.models
        }
        for prompts in (safety, xstest)
    }
    results = build(RUN, run._replace(margin=margin))
    for model in run.models:
        values = margin["beavertails"][model.name]
        weights = [prompt.weight for prompt in safety.prompts[:20]]
        found = results["cells"][model.name]["beavertails/margin"]
        assert found["value"] == pytest.approx(np.average(list(values.values()), weights=weights))
        for label in ("safe", "unsafe"):
            own = [
                (margin["xstest"][model.name][prompt.key], prompt.weight)
                for prompt in xstest.prompts[:20]
                if prompt.label == label
            ]
            found = results["cells"][model.name][f"xstest/margin/{label}"]
            assert found["value"] == pytest.approx(
                np.average([value for value, _ in own], weights=[weight for _, weight in own])
            )
        refused, answered = [], []
        for prompt in safety.prompts[:20]:
            response = run.responses["beavertails"][model.name].get(prompt.key)
            judgement = None if response is None else run.judgements["refusal"].get(response.key)
            if judgement is not None and judgement.status == "ok":
                group = refused if judgement.scores["refusal"] > 0.5 else answered
                group += [values[prompt.key]] * prompt.weight
        cell = results["cells"][model.name]["beavertails/refusal/margin-auc"]
        if not (refused and answered):
            assert cell["value"] is None
            continue
        pairs = [(r > a) + 0.5 * (r == a) for r in refused for a in answered]
        assert cell["value"] == pytest.approx(np.mean(pairs))
        assert cell["n"] == len(refused) + len(answered)


def test_base_nll_is_a_mean_over_answers() -> None:
    run = make()
    keys = [prompt.key for prompt in run.sets[0].prompts[:4]]
    base_nll = {run.sets[0].name: {"base": dict.fromkeys(keys, 0.5), "mono": dict.fromkeys(keys[:2], 2.0)}}
    results = build(RUN, run._replace(base_nll=base_nll))
    name = f"{run.sets[0].name}/base-nll"
    assert results["cells"]["base"][name]["value"] == 0.5
    assert results["cells"]["mono"][name]["value"] == 2.0
    assert results["cells"]["mono"][name]["invalid"] > 0
