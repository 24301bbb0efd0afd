"""What is said of the numbers: never more than the statistics allow."""

from __future__ import annotations

from typing import Any

import pytest

from monolora.eval.report import sentences
from monolora.eval.report.lookups import View
from tests.support.synthetic_report import make

FLAGGED = "beavertails/beaverdam/flagged"


def _view(p_holm: float, difference: float = 4.0, side_effect: bool = False) -> View:
    """A view whose every difference has this p and size; one column beside harm is significant on demand."""
    results, _ = make(("base", "mono"))
    for each in results["differences"]:
        numbers = {"difference": difference, "low": difference - 3, "high": difference + 3}
        each |= numbers | {"p": p_holm / 2, "p_holm": p_holm, "n": 200}
        if side_effect and each["column"] == "beavertails/repetition":
            each["p_holm"] = 0.01
    return View(results)


@pytest.mark.parametrize(("difference", "word"), [(4.0, "more harmful"), (-4.0, "less harmful")])
def test_a_finding_names_direction_size_and_columns(difference: float, word: str) -> None:
    view = _view(0.01, difference)
    (said,) = sentences.harm(view)
    assert f"{word} than base in 6 of 6 measures" in said
    assert f"beaverdam flagged {'+' if difference > 0 else '−'}4.00" in said
    verb, reading = ("rose", "worse") if difference > 0 else ("fell", "better")
    effects = sentences.effects(view, "mono")
    assert len(effects) == 6
    assert effects[5].startswith(f"beaverdam flagged {verb} by 4.00 points, which is {reading} (95% CI [")
    assert effects[5].endswith("p=0.005, Holm p=0.010, n=200).")


def test_where_nothing_is_significant_nothing_is_claimed() -> None:
    view = _view(0.05)
    (said,) = sentences.harm(view)
    assert said == (
        "mono: no difference from base was found in any of the 6 measures of harm; with n=200, changes of up to 7.00 "
        "points fit the data."
    )
    effects = sentences.effects(view, "mono")
    assert len(effects) == 6
    assert all(": no difference was found (+4.00" in each for each in effects)


def test_what_else_changed_is_said_beside_no_harm() -> None:
    said = sentences.summary(_view(0.5, side_effect=True), "mono")
    assert "no difference from base" in said
    assert said.endswith("Also changed: beavertails repetition +4.00 points.")


def test_models_without_findings_share_a_sentence() -> None:
    results, _ = make(("base", "lora", "mono", "whole"))
    for each in results["differences"]:
        each["p_holm"] = 0.01 if each["model"] == "mono" and each["column"] == FLAGGED else 1.0
    first, second = sentences.harm(View(results))
    assert first.startswith("mono was judged")
    assert first.endswith("no difference was found in the rest.")
    assert second.startswith("lora and whole: no difference from base")


def test_nothing_to_compare() -> None:
    results, _ = make(("base",))
    assert sentences.harm(View(results)) == []
    results, _ = make(("base", "mono"))
    results["judges"] = [judge for judge in results["judges"] if judge["kind"] == "refusal"]
    (said,) = sentences.harm(View(results))
    assert said.startswith("mono: no judge of harm was run, so alignment is not assessed.")


def test_differences_of_nothing_valid_are_no_finding() -> None:
    results, _ = make(("base", "mono"))
    for each in results["differences"]:
        each |= dict.fromkeys(("difference", "low", "high", "p", "p_holm"))
    view = View(results)
    assert sentences.harm(view) == ["mono: nothing valid to compare with base."]
    assert sentences.effects(view, "mono")[0] == "ShieldGemma Danger.: nothing valid to compare."


def _counted(judgements: list[int], **counts: int) -> list[str]:
    results, _ = make(("base", "mono"))
    reason = {"model": "mono", "set": "beavertails", "reason": "nan"}
    results["invalid"] = [reason | {"judge": "beaverdam", "count": count} for count in judgements]
    row: dict[str, Any] = {"model": "mono", "set": "beavertails", "responses": 1200, "reasons": {}}
    results["counts"] = [row | dict.fromkeys(("invalid", "cut", "empty", "at_limit"), 0) | counts]
    return sentences.failures(View(results))


def test_failures_are_counted_in_words() -> None:
    assert _counted([]) == []
    assert _counted([1]) == ["1 judgement by beaverdam is invalid and left out of every mean."]
    assert _counted([3, 1100])[0].startswith("1,103 judgements by beaverdam are invalid")
    assert _counted([], invalid=3, empty=2) == [
        "3 of 1,200 responses are unavailable.",
        "2 of 1,200 responses are empty, which judges may take for safe.",
    ]


def test_what_was_not_asked_yet_is_no_failure() -> None:
    results, _ = make(("base", "mono"))
    results["invalid"] = [{"judge": "a", "model": "mono", "set": "s", "reason": "missing", "count": 3}]
    row = results["counts"][0] | {"responses": 10, "invalid": 4, "cut": 0, "empty": 0, "reasons": {"missing": 3}}
    results["counts"] = [row]
    assert sentences.failures(View(results)) == [
        "3 judgements by a are missing: run `monolora eval score`.",
        "4 of 10 responses are unavailable, 3 of them not asked for yet.",
    ]


def test_responses_that_a_judge_read_in_part() -> None:
    results, _ = make(("base", "mono"))
    results["invalid"] = []
    results["judged_in_part"] = [{"judge": "beaverdam", "model": each, "set": "a", "count": 2} for each in "xy"]
    assert sentences.failures(View(results))[0] == "4 judgements by beaverdam are of a response whose end did not fit."


@pytest.mark.parametrize(
    ("kappa", "word"),
    [(0.81, "almost perfect"), (0.43, "moderate"), (0.05, "slight"), (0.0, "none beyond chance"), (-0.2, "none")],
)
def test_agreement(kappa: float, word: str) -> None:
    results, _ = make()
    results["agreement"][0]["kappa"] = kappa
    results["agreement"].append(results["agreement"][0] | {"model": "mono"})  # for the page only
    (said,) = sentences.agreement(View(results))
    assert said.startswith("shieldgemma and beaverdam agree with kappa ")
    assert word in said


def test_agreement_that_cannot_be_had() -> None:
    results, _ = make()
    results["agreement"][0]["kappa"] = None
    (said,) = sentences.agreement(View(results))
    assert "cannot be compared" in said
