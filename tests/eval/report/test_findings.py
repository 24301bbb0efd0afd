"""The page's opening: the finding first, then topic by topic."""

from __future__ import annotations

from typing import Any

import pytest

from monolora.eval.report.findings import findings, message
from monolora.eval.report.lookups import View
from tests.support.synthetic_report import make

KEPT = "beavertails/refusal/still-refused"


def _view(**kept: tuple[int, int]) -> View:
    """Of a base and models that keep so many refusals of so many."""
    results, _ = make(("base", *kept))
    for model, (count, n) in kept.items():
        results["cells"][model][KEPT] |= {"value": 100 * count / n, "n": n}
    return View(results)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({"lora": (2, 16), "mono": (13, 16)}, "lora lost 14 of 16 refusals; mono kept 13."),
        ({"lora": (0, 16), "mono": (16, 16)}, "lora lost all 16 refusals; mono kept all 16."),
        ({"lora": (2, 16), "mono": (8, 14)}, "lora lost 14 of 16 refusals; mono kept 8 of 14."),
        ({"lora": (3, 4)}, "lora kept 3 of 4 refusals."),
        ({"a": (5, 9), "b": (2, 9), "c": (8, 9), "d": (4, 9)}, "b lost 7 of 9 refusals; c kept 8."),
    ],
)
def test_refusals_come_first(kept: dict[str, tuple[int, int]], said: str) -> None:
    assert message(_view(**kept)) == said


def test_checkpoints_are_named_only_where_there_is_nothing_else() -> None:
    results, _ = make()
    results["models"][1]["step"] = 100
    assert message(View(results)) == "mono kept 13 of 16 refusals."
    results["models"][2]["step"] = 200
    assert message(View(results)) == "lora lost 14 of 16 refusals; mono kept 13."


def _without_refusals(models: tuple[str, ...] = ("base", "lora", "mono")) -> dict[str, Any]:
    results, _ = make(models)
    results["columns"] = [column for column in results["columns"] if column["id"] != KEPT]
    results["differences"] = [each | {"p_holm": 1.0} for each in results["differences"] if each["column"] != KEPT]
    return results


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "For lora and mono no difference from base in harm was found."),
        (
            {("lora", "flagged"): 4.0},
            "lora was judged more harmful than base; for mono no difference from base in harm was found.",
        ),
        (
            {("lora", "flagged"): 4.0, ("mono", "average"): 3.0},
            "lora and mono were judged more harmful than base.",
        ),
        ({("lora", "flagged"): 4.0, ("lora", "average"): -3.0, ("mono", "average"): -3.0},
         "mono was judged less harmful than base; lora changed in both directions, by measure."),
    ],
)  # fmt: skip
def test_then_harm(changes: dict[tuple[str, str], float], said: str) -> None:
    results = _without_refusals()
    for each in results["differences"]:
        change = changes.get((each["model"], each["column"].split("/")[-1]))
        if change is not None and each["against"] == "base" and each["column"].startswith("beavertails/"):
            each |= {"difference": change, "p_holm": 0.01}
    assert message(View(results)) == said


def test_then_the_task() -> None:
    results = _without_refusals()
    results["judges"] = [judge for judge in results["judges"] if judge["kind"] == "refusal"]
    assert message(View(results)).startswith(
        "sst2 accuracy: base 89.00\u00a0%, lora 83.00\u00a0% (no difference found)"
    )
    results["columns"] = [column for column in results["columns"] if column["aspect"] != "task"]
    assert message(View(results)) == "No judge of harm was run and no task was scored."


def test_of_one_model_nothing_is_compared() -> None:
    view = View(make(("base",))[0])
    assert message(view) == "Only base was measured: there is nothing to compare it with."
    said = findings(view)
    assert list(said) == ["Measured", "Alignment", "Over-refusal", "Task", "Caveats"]
    assert said["Alignment"] == ["beavertails refusal: base 2.50\u00a0%."]


def test_topics_are_in_the_order_in_which_they_are_read() -> None:
    said = findings(View(make()[0]))
    assert list(said) == ["Measured", "Alignment", "Over-refusal", "Task", "Drift", "Caveats"]
    assert said["Measured"][0] == (
        "base, lora and mono answered 60 prompts of beavertails (safety) and 60 prompts of xstest (over-refusal)."
    )
    assert "Refusals kept, of base’s on beavertails: lora 2 of 16, mono 13 of 16." in said["Alignment"]
    assert said["Drift"] == ["beavertails drift: lora 0.597\u00a0nats/token, mono 0.059\u00a0nats/token."]
    assert "2 judgements by beaverdam are invalid and left out of every mean." in said["Caveats"]


def test_of_many_models_the_ends_are_named() -> None:
    names = tuple(f"m{k}" for k in range(9))
    results, _ = make(("base", *names))
    column = "task:sst2/accuracy"
    for k, name in enumerate(names):
        results["cells"][name][column] |= {"value": 50.0 + k}
    (said,) = findings(View(results))["Task"]
    assert "m0 50.00" in said
    assert "m8 58.00" in said
    assert said.endswith("; the other 7 are between.")
