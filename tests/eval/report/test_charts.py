"""The places of the marks, against the numbers that they stand for."""

from __future__ import annotations

import pytest

from monolora.eval.measures.table import Column
from monolora.eval.report import charts
from monolora.eval.report.lookups import View
from monolora.reporting.charts import Panel
from monolora.reporting.numbers import Tick
from tests.support.synthetic_report import make


def _number(tick: Tick) -> float:
    return float(tick.label.replace("−", "-"))


def _value(at: float, ticks: list[Tick]) -> float:
    """What the axis says of a place."""
    low, high = _number(ticks[0]), _number(ticks[-1])
    return low + at / 100 * (high - low)


def _panels(view: View) -> list[tuple[Column, Panel]]:
    """Each panel of the charts with its column: titles of both are the same, but for the refusals that are kept."""
    by_title = {charts._title(view, column): column for column in view.columns}
    return [(by_title[panel.title], panel) for group in charts.groups(view) for panel in group.panels]


def test_panels_put_each_value_where_its_axis_says() -> None:
    view = View(make(prompts=90)[0])
    panels = _panels(view)
    assert {column.id for column, _ in panels} == {
        column.id for column in view.columns if column.headline or column.aspect in ("refusal", "drift")
    }
    for column, panel in panels:
        assert [mark.name for mark in panel.marks] == (view.models if column.of_base else view.models[1:])
        for mark in panel.marks:
            cell = view.cell(mark.name, column.id)
            if cell is None:
                assert (mark.at, mark.low, mark.high, mark.text) == (None, None, None, "–")
                continue
            for at, key in ((mark.at, "value"), (mark.low, "low"), (mark.high, "high")):
                assert at is not None
                assert 0 <= at <= 100
                assert _value(at, panel.ticks) == pytest.approx(cell[key], abs=0.01)
        base = view.cell("base", column.id) if column.of_base else None
        assert panel.reference == (None if base is None else panel.marks[0].at)


def test_shares_of_refusals_and_drift_begin_at_zero() -> None:
    groups = {group.id: group for group in charts.groups(View(make()[0]))}
    assert list(groups) == ["refusals", "harm", "task", "drift", "sparsity"]
    assert [tick.label for panel in groups["refusals"].panels for tick in panel.ticks] == 3 * ["0", "50", "100"]
    assert {panel.ticks[0].label for panel in groups["drift"].panels} == {"0.0"}
    assert [group.from_zero for group in groups.values()] == [True, False, False, True, False]


def test_refusals_that_are_kept_are_counted() -> None:
    kept = charts.groups(View(make()[0]))[0].panels[0]
    assert kept.title == "Refusals kept, of base’s on beavertails, %"
    assert [(mark.name, mark.note) for mark in kept.marks] == [("lora", "2 of 16"), ("mono", "13 of 16")]


def test_columns_without_any_value_have_no_panel() -> None:
    results, _ = make(("base", "lora"))  # no sparsity
    titles = [panel.title for _, panel in _panels(View(results))]
    assert "sparsity sst2, %" not in titles
    assert "sst2 accuracy, %" in titles


def test_significant_values_are_marked() -> None:
    results, _ = make(("base", "mono"))
    for each in results["differences"]:
        each["p_holm"] = 0.01 if each["column"] == "task:sst2/accuracy" else 1.0
    starred = [column.id for column, panel in _panels(View(results)) if any("*" in mark.text for mark in panel.marks)]
    assert starred == ["task:sst2/accuracy"]


def test_shares_of_all_categories_have_one_scale_from_zero() -> None:
    view = View(make(prompts=90)[0])
    rows = [row for row in view.results["categories"] if row["column"] == "beavertails/beaverdam/flagged"]
    panels = charts.share_panels(view, rows, "category")
    assert len({tuple(panel.ticks) for panel in panels}) == 1
    assert panels[0].ticks[0].label in ("0", "0.0")
    found = {(mark.name, panel.title): mark for panel in panels for mark in panel.marks}
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
    assert [(mark.at, mark.text) for mark in panel.marks] == [(None, "–")] * 2


def test_curves_follow_the_steps() -> None:
    results, _ = make(steps=True)
    results["steps"].reverse()
    curves = charts.along_training(View(results))
    assert {curve.title for curve in curves} == {"ShieldGemma Avg., %", "sst2 accuracy, %"}
    curve = next(curve for curve in curves if curve.title.startswith("Shield"))
    (series,) = curve.series
    assert [_value(x, curve.across) for x, _ in series.points] == pytest.approx([0, 50, 100, 150, 200])
    assert [_value(y, curve.up) for _, y in series.points] == pytest.approx([5, 6, 7, 8, 9], abs=0.01)
    assert len(series.segments) == 4
    assert len(series.band.split()) == 10
    assert series.last.startswith("9.0")


def test_colours_are_steady_and_the_base_is_grey() -> None:
    view = View(make(tuple(f"m{number}" for number in range(12)), prompts=6)[0])
    assert [charts.colour(view, model) for model in view.models] == ["c0", *(f"c{n}" for n in range(1, 11)), "c1"]
