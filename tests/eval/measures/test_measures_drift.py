"""The columns of the drift and of silent tokens in the table."""

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
