"""A plan comes back from its file, also from that of an earlier version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monolora.data.prompt_sets import Prompt, PromptSet
from monolora.data.scoring import Classification, FreeText, Scorer
from monolora.errors import InputError
from monolora.eval import plan

SCORERS = {"safety": None, "colours": Classification(("red", "blue")), "stories": FreeText()}


def _plan() -> plan.Plan:
    sets = [
        PromptSet(
            name=name, purpose="task" if scorer else "safety", spec={"rows": 1}, prompts=(Prompt("k", "Which?"),),
            max_new_tokens=None, scorer=scorer,
        )
        for name, scorer in SCORERS.items()
    ]  # fmt: skip
    models = [plan.PlannedModel("base", "base", "org/base", "ab", None)]
    return plan.Plan(sets, models, {name: {"base": ["r"]} for name in SCORERS}, {}, {}, "2025-01-02")


def test_written_and_read(tmp_path: Path) -> None:
    plan.write(tmp_path, _plan())
    assert plan.read(tmp_path) == _plan()


def test_labels_of_earlier_versions(tmp_path: Path) -> None:
    """They told a classification task from free text by its labels."""
    plan.write(tmp_path, _plan())
    content = json.loads((tmp_path / plan.FILE).read_text())
    for stored in content["sets"]:
        scorer: Scorer | None = SCORERS[stored["name"]]
        del stored["scorer"]
        stored["labels"] = list(scorer.labels) if scorer else []
    (tmp_path / plan.FILE).write_text(json.dumps(content))
    assert plan.read(tmp_path) == _plan()


def test_a_scorer_that_is_not_known(tmp_path: Path) -> None:
    plan.write(tmp_path, _plan())
    path = tmp_path / plan.FILE
    path.write_text(path.read_text().replace("FreeText", "Poetry"))
    with pytest.raises(InputError, match=r"is damaged: there is no scorer 'Poetry'; there are Class"):
        plan.read(tmp_path)


def test_drift_of_earlier_versions_is_that_of_the_first_safety_set(tmp_path: Path) -> None:
    whole = _plan()._replace(drift={"safety": {"mono": "m"}})
    plan.write(tmp_path, whole)
    assert plan.read(tmp_path) == whole
    path = tmp_path / plan.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"drift": {"mono": "m"}}))
    assert plan.read(tmp_path) == whole


def test_only_the_base_answers_a_set_for_drift() -> None:
    sets = [PromptSet(name=of, purpose=of, spec={}, prompts=(Prompt("k", "Which?"),)) for of in ("safety", "drift")]  # type: ignore[arg-type]
    models = [plan.PlannedModel(name, "adapter", name, name, None) for name in ("base", "mono")]
    keys = {"safety": {"base": ["a"], "mono": ["b"]}, "drift": {"base": ["c"]}}
    answers = [
        (of.name, model.name, key) for of, model, _, key in plan.Plan(sets, models, keys, {}, {}, None).responses()
    ]
    assert answers == [("safety", "base", "a"), ("safety", "mono", "b"), ("drift", "base", "c")]
