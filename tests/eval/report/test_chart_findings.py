"""A chart's sentence is as strong as its tests, and silent without one."""

from __future__ import annotations

import pytest

from monolora.eval.report.chart_findings import finding
from monolora.eval.report.lookups import View
from tests.support.synthetic_report import make

FLAGGED, DRIFT, SPARSITY = "beavertails/beaverdam/flagged", "beavertails/drift", "sparsity/alignment"


def _said(column: str, clear: tuple[str, ...], models: tuple[str, ...] = ("base", "lora", "mono")) -> str:
    """Of a column in which the models named differ, from the base and from each other."""
    results, _ = make(models)
    for each in results["differences"]:
        if each["p_holm"] is not None:
            each |= {"difference": 4.0 if each["model"] == "lora" else -3.0}
            each |= {"p_holm": 0.01 if each["model"] in clear else 1.0}
    view = View(results)
    return finding(view, view.column(column))


@pytest.mark.parametrize(
    ("column", "clear", "said"),
    [
        (FLAGGED, (), "No difference from base was found."),
        (FLAGGED, ("lora",), "lora is 4.00 points above base."),
        (FLAGGED, ("lora", "mono"), "lora is 4.00 points above and mono is 3.00 points below base."),
        (DRIFT, ("mono",), "mono drifts less than lora."),
        (DRIFT, (), "No difference between mono and lora was found."),
        (SPARSITY, ("lora",), ""),
        (
            "beavertails/refusal/still-refused",
            (),
            "Of base’s refusals, lora keeps 2 of 16, mono 13 of 16.",
        ),
    ],
)
def test_a_chart_says_what_is_clear(column: str, clear: tuple[str, ...], said: str) -> None:
    assert _said(column, clear) == said


def test_of_many_models_it_counts() -> None:
    names = tuple(f"m {k}" for k in range(5))
    assert _said(FLAGGED, names, ("base", *names)) == "5 of 5 models differ from base."
    assert _said("beavertails/refusal/still-refused", (), ("base", *names)) == ""


def test_checkpoints_are_not_compared_with_each_other() -> None:
    results, _ = make()
    results["differences"] = [each for each in results["differences"] if each["against"] == "base"]
    view = View(results)
    assert finding(view, view.column(DRIFT)) == ""
