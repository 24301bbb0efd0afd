"""The report of a repair: what its sentence says of which numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from monolora.recipes import repair_report
from monolora.recipes.repair_report import Checked, Repair
from monolora.recipes.settings import Repair as Settings
from monolora.repair import FoundUnits, Outcome, Point
from monolora.units import UnitName

UNITS = [UnitName("layers.0.q_proj", unit) for unit in range(4)]
NOISE = np.linspace(-0.01, 0.01, 8)


def checked(strength: float | None, kept: float, rise: float = 0.0) -> Checked:
    """A way whose prompts and rows have these means, with a little spread."""
    noise = 0 * NOISE if strength is None else NOISE
    return Checked(
        strength, [Point(strength or 0, kept, 0.5 + rise)], Outcome(kept + noise, 0.5 + rise + noise[::-1]), 1
    )


def repair(units: Checked, scaled: Checked | None = None, **changes: object) -> Repair:
    found = FoundUnits(UNITS[1:3] if units.strength else [], units.points, -np.arange(4.0), np.arange(4.0))
    whole = repair_report.Repair(
        restore="kl",
        limit=0.02,
        is_linear=False,
        names=UNITS,
        weights_N=np.ones(8),
        refusals=3,
        before=Point(0, 1.0, 0.5),
        found=found,
        whole=checked(None, 1.0),
        units=units,
        controls={
            "random": [checked(1, 0.9), checked(3, 0.8)],
            "scaled": [scaled or checked(0.25, 0.9)],
            "entries": [checked(None, 1.0)],
        },
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


SENTENCES = {
    "better than scaling": (
        repair(checked(2, 0.2)),
        "Without 2 of 4 units the KL to the base falls from 1 to 0.2 nats per token on held-out prompts",
    ),
    "scaling is as good": (
        repair(checked(2, 0.6), checked(0.25, 0.6)),
        "Scaling the whole adapter by 0.75 does as well: it reaches 0.6, at +",
    ),
    "scaling is better": (
        repair(checked(2, 0.6), checked(0.25, 0.1)),
        "Scaling the whole adapter by 0.75 does better: it reaches 0.1, at +",
    ),
    "no units": (
        repair(checked(None, 1.0), checked(None, 1.0)),
        "Nothing was taken out: on the half that chooses, no units lower the KL",
    ),
    "scaling alone helps": (
        repair(checked(None, 1.0)),
        "Scaling the whole adapter by 0.75 does better: it reaches 0.9",
    ),
    "worse": (
        repair(checked(2, 1.2), checked(None, 1.0)),
        "Nothing was taken out: on the half that checks, the KL to the base does not fall",
    ),
    "too dear": (
        repair(checked(2, 0.2, rise=0.4), checked(None, 1.0)),
        "Nothing was taken out: on the half that checks, the 2 units that were chosen cost the task +0.4",
    ),
    "ranks": (repair(checked(2, 0.2), is_linear=True), "Without 2 of 4 ranks the KL"),
    "refusals": (
        repair(checked(2, 0.2), restore="refusals"),
        "Without 2 of 4 units the shortfall of the refusal margin falls",
    ),
}


@pytest.mark.parametrize(("given", "says"), SENTENCES.values(), ids=SENTENCES)
def test_sentences(given: Repair, says: str) -> None:
    text = repair_report.sentence(given)
    assert text.startswith(says)
    assert (given.taken_out == []) == ("Nothing was taken out" in text)


def test_a_cost_that_may_be_within_the_limit_is_no_reason() -> None:
    units = checked(2, 0.2)
    dear = np.array([0.0] * 7 + [0.4])  # 0.05 on average, and its interval begins at 0
    given = repair(units._replace(outcome=Outcome(units.outcome.kept_P, 0.5 + dear)))
    assert given.cost(given.units).mean == pytest.approx(0.05)
    assert given.rolled_back == ""
    assert "nats per token, which may be more than 0.02." in repair_report.sentence(given)


def test_the_rows() -> None:
    given = repair(checked(2, 0.2), lora=repair(checked(3, 0.4), is_linear=True, controls={}))
    shown = repair_report.summary(given)["rows"]
    assert [(row["name"], row["strength"]) for row in shown] == [
        ("the adapter as trained", "–"),
        ("units taken out", "2 of 4"),
        ("random units, 2 draws", "2 of 4"),
        ("the whole adapter scaled down", "× 0.75"),
        ("single entries of B zeroed", "none"),
        ("LoRA: the adapter as trained", "–"),
        ("LoRA: ranks taken out", "3 of 4"),
    ]
    draws = shown[2]["kept"]
    assert draws["mean"] == pytest.approx(0.85)
    assert draws["low"] < 0.8 < 0.9 < draws["high"]  # Student's, of two draws
    assert shown[1]["restored"]["mean"] == pytest.approx(-0.8)
    assert {row["still_refused"] for row in shown} == {"1 of 3"}
    console = Console(width=200, record=True, quiet=True)
    console.print(repair_report.table(given))
    text = repair_report.markdown(given, Settings(adapter="runs/a", task="sst2", keep_prompts=("refusals",)))
    assert all(row["name"] in text for row in shown)
    assert "| units taken out" in text
