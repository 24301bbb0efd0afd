"""Titles of a study's report say what was found, and no more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from monolora.eval.measures.table import Column
from monolora.recipes.study import findings
from monolora.recipes.study.claims import Answer, Claim, Verdict
from monolora.recipes.study.results import BASE, Values
from tests.support.study_records import STUDY, columns


def _decided(source: str, *answers: Answer) -> list[Verdict]:
    claim = Claim("text", source, "sst2", columns()[0], "MonoLoRA", "LoRA", "lower")
    return [Verdict(claim, answer, None, None, "why") for answer in answers]


@pytest.mark.parametrize(
    ("decided", "said"),
    [
        (
            _decided("table 2", "holds", "does not hold", "cannot be told", "cannot be told"),
            "Of the paper’s 4 claims, 1 holds here, 1 does not hold and 2 cannot be told.",
        ),
        (_decided("table 2", "holds", "holds") + _decided("ours", "does not hold"),
         "Of the paper’s 2 claims, 2 hold here."),
        (_decided("ours", "does not hold", "holds"), "Of 2 claims, 1 holds here and 1 does not hold."),
        (_decided("ours", "cannot be told", "cannot be told"), "None of 2 claims can be decided."),
        ([], "The study measured, and tested no claim."),
    ],
)  # fmt: skip
def test_the_message_counts_verdicts(decided: list[Verdict], said: str) -> None:
    assert findings.verdict_count(decided) == said


def _values(unit: str = "%", **by_model: list[list[float]]) -> Values:
    column = Column(metric="m", aspect="task", set="s", title="score", group="", description="", unit=unit)
    tables = {name: np.array(rows, float) for name, rows in by_model.items()}
    return Values(column, np.ones(len(next(iter(tables.values()))[0])), tables)


def test_a_panel_compares_the_tested_adapter_with_the_control() -> None:
    ours = {values.column.metric: values for values in columns()}
    assert findings.compared(STUDY, ours["flagged"]) == "MonoLoRA is 19.4 points below LoRA [−26.0, −12.9]."
    assert findings.compared(STUDY, ours["accuracy"]).startswith("No difference between MonoLoRA and LoRA was found: −")
    assert findings.compared(STUDY, ours["drift"]).startswith("MonoLoRA is 0.522 nats/token below LoRA [")
    same = _values(LoRA=[[50.0, 50.0]] * 2, MonoLoRA=[[50.0, 50.0]] * 2)
    assert "MonoLoRA" in findings.compared(STUDY, same)
    assert findings.compared(STUDY, _values(LoRA=[[1.0, 2.0]])) == ""


def test_retention_is_said_of_each_data_set_that_measures_it() -> None:
    column = Column(metric="still refused", aspect="safety", set="s", title="t", group="", description="", unit="%")
    kept = Values(
        column, np.ones(2), {"LoRA": np.array([[0.0, 100.0]] * 2), "MonoLoRA": np.array([[100.0, 100.0]] * 2)}
    )
    none = kept._replace(by_model={"LoRA": kept.by_model["LoRA"]})
    both = findings.retention(STUDY, {"sst2": [kept], "dolly": [kept, none]}).replace("\xa0", " ")
    assert (
        both == "On sst2 and dolly, MonoLoRA keeps 100.0 % and 100.0 % of the base’s refusals, LoRA 50.0 % and 50.0 %."
    )
    one = findings.retention(STUDY, {"sst2": [kept], "dolly": columns()})
    assert one.startswith("On sst2, MonoLoRA keeps 100.0")
    assert findings.retention(STUDY, {"sst2": [none], "dolly": columns()}) == ""


def test_the_figure_of_means_names_the_first_column() -> None:
    values = _values(**{BASE: [[20.0, 30.0]], "LoRA": [[50.0, 60.0]], "MonoLoRA": [[40.0, 41.0]]})
    said = "sst2: score 25.0 % in the base, 55.0 % after LoRA, 40.5 % after MonoLoRA"
    assert findings.means(STUDY, "sst2", [values]) == said


def test_the_figure_of_keeping_names_both_ends() -> None:
    score = _values(a=[[80.0]], b=[[82.0]])
    drift = _values("nats/token", a=[[0.01]], b=[[0.5]])
    assert findings.kept("sst2", score, drift, "ab") == "sst2: a drifts least and scores 80.0 %; b scores best, 82.0 %"
    drift = _values("nats/token", a=[[0.6]], b=[[0.5]])
    assert findings.kept("sst2", score, drift, "ab") == "sst2: b drifts least and scores best (82.0 %)"


def test_every_row_and_judge_is_explained() -> None:
    rows = findings.rows(STUDY)
    assert list(rows) == [BASE, *STUDY.adapters]
    assert "This is LoRA itself" in rows["identity"]
    assert rows["top-2"] == "MonoLoRA: LoRA with the 2 largest positive units of each token."
    judges = findings.judges(STUDY)
    assert list(judges) == ["judge", "refusal"]
    assert "trained for this study" in judges["judge"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"adapter": "lora", "keep": ["kl"]}, "next-token probabilities on anchor prompts (KL)"),
        ({"adapter": "monolora", "keep": "silence:0.01"}, "trained to add nothing on anchor prompts (silence)"),
        ({"adapter": "monolora", "activation": "softplus"}, "MonoLoRA: LoRA with a softplus between A and B."),
        ({"adapter": "monolora", "keep": ["mine.py:Mine"]}, "It is trained with --keep mine.py:Mine."),
    ],
)
def test_what_an_adapter_is(flags: dict[str, Any], said: str) -> None:
    assert said in " ".join(findings._adapter(flags))
