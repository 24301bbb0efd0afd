"""The places of the marks, against the numbers that they stand for."""

from __future__ import annotations

import pytest

from monolora.eval.report import charts
from monolora.eval.report.charts import View
from monolora.reporting.numbers import Tick
from tests.support.synthetic_report import make


def _number(tick: Tick) -> float:
    return float(tick.label.replace("−", "-"))


def _value(at: float, ticks: list[Tick]) -> float:
    """What the axis says of a place."""
    low, high = _number(ticks[0]), _number(ticks[-1])
    return low + at / 100 * (high - low)


def test_score_panels_put_each_value_where_its_axis_says() -> None:
    view = View(make(prompts=90)[0])
    panels = charts.score_panels(view)
    assert len(panels) == len(view.headline)
    for panel, column in zip(panels, view.headline, strict=True):
        assert [mark.model for mark in panel.marks] == view.models
        for mark in panel.marks:
            cell = view.cell(mark.model, column.id)
            if cell is None:
                assert (mark.at, mark.low, mark.high, mark.value) == (None, None, None, "–")
                continue
            for at, key in ((mark.at, "value"), (mark.low, "low"), (mark.high, "high")):
                assert at is not None
                assert 0 <= at <= 100
                assert _value(at, panel.ticks) == pytest.approx(cell[key], abs=0.01)
        base = view.cell("base", column.id)
        assert panel.reference == (None if base is None else panel.marks[0].at)


def test_columns_without_any_value_have_no_panel() -> None:
    results, _ = make(("base", "lora"))  # no sparsity
    titles = [panel.title for panel in charts.score_panels(View(results))]
    assert "sparsity sst2, %" not in titles
    assert "sst2 accuracy, %" in titles


def test_significant_values_are_marked() -> None:
    results, _ = make(("base", "mono"))
    for each in results["differences"]:
        each["p_holm"] = 0.01 if each["column"] == "task:sst2/accuracy" else 1.0
    marks = [mark.value for panel in charts.score_panels(View(results)) for mark in panel.marks]
    assert [value for value in marks if value.endswith("*")] == [marks[-1]]


def test_shares_of_all_categories_have_one_scale_from_zero() -> None:
    view = View(make(prompts=90)[0])
    rows = [row for row in view.results["categories"] if row["column"] == "beavertails/beaverdam/flagged"]
    panels = charts.share_panels(view, rows, "category")
    assert len({tuple(panel.ticks) for panel in panels}) == 1
    assert panels[0].ticks[0].label in ("0", "0.0")
    found = {(mark.model, panel.title): mark for panel in panels for mark in panel.marks}
    assert len(found) == len(rows)
    for row in rows:
        mark = found[row["model"], row["category"]]
        assert mark.at is not None
        assert _value(mark.at, panels[0].ticks) == pytest.approx(row["value"], abs=0.01)
        assert mark.note == f"n={row['n']}"


def test_shares_of_nothing_have_no_bar() -> None:
    view = View(make(("base", "mono"))[0])
    rows = [{"model": model, "category": "tea", "value": None, "n": 0} for model in view.models]
    (panel,) = charts.share_panels(view, rows, "category")
    assert [(mark.at, mark.value) for mark in panel.marks] == [(None, "–")] * 2


def test_curves_follow_the_steps() -> None:
    results, _ = make(steps=True)
    results["steps"].reverse()
    curves = charts.curves(View(results))
    assert {curve.title for curve in curves} == {"ShieldGemma Avg., %", "sst2 accuracy, %"}
    curve = next(curve for curve in curves if curve.title.startswith("Shield"))
    assert [_value(x, curve.across) for x, _ in curve.points] == pytest.approx([0, 50, 100, 150, 200])
    assert [_value(y, curve.up) for _, y in curve.points] == pytest.approx([5, 6, 7, 8, 9], abs=0.01)
    assert len(curve.segments) == 4
    assert len(curve.band.split()) == 10
    assert curve.last.startswith("9.0")


def test_colours_are_steady_and_the_base_is_grey() -> None:
    view = View(make(tuple(f"m{number}" for number in range(11)), prompts=6)[0])
    assert [charts.colour(view, model) for model in view.models] == ["c0", *(f"c{n}" for n in range(1, 9)), "c1", "c2"]
