"""Of the base's refusals, how many a model still refuses."""

from __future__ import annotations

import pytest

from monolora.eval.measures.results import build
from monolora.eval.store import OK
from tests.support.synthetic_run import RUN, make


@pytest.mark.parametrize(("name", "label"), [("beavertails", None), ("xstest", "unsafe")])
def test_still_refused_is_over_what_the_base_refuses(name: str, label: str | None) -> None:
    """Prompts that are not labelled unsafe do not count where a set has labels."""
    run = make(prompts=80)
    (judge,) = (judge for judge in run.judges if judge.name == "refusal")
    (prompts,) = (prompt_set.prompts for prompt_set in run.sets if prompt_set.name == name)

    def refuses(model: str, key: str) -> bool | None:
        response = run.responses[name][model].get(key)
        judgement = None if response is None else run.judgements["refusal"].get(response.key)
        return None if judgement is None or judgement.status != OK else judge.flagged(judgement.scores)

    asked = [prompt for prompt in prompts if label in (None, prompt.label) and refuses("base", prompt.key)]
    flags = [(prompt.weight, refuses("mono", prompt.key)) for prompt in asked]
    valid = [(weight, flag) for weight, flag in flags if flag is not None]
    results = build(RUN, run)
    cells = {model: of_model[f"{name}/refusal/still-refused"] for model, of_model in results["cells"].items()}
    expected = 100 * sum(weight * flag for weight, flag in valid) / sum(weight for weight, _ in valid)
    assert cells["mono"]["value"] == pytest.approx(expected)
    assert cells["mono"]["invalid"] == sum(weight for weight, flag in flags if flag is None)
    assert cells["base"] is None


def test_a_base_that_refuses_nothing_has_no_such_column() -> None:
    run = make()
    calm = {key: of._replace(scores={"refusal": 0.0}) for key, of in run.judgements["refusal"].items()}
    results = build(RUN, run._replace(judgements={**run.judgements, "refusal": calm}))
    assert not [column for column in results["columns"] if column["metric"] == "still refused"]
