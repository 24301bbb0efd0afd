"""Marks stand where their axes say."""

from __future__ import annotations

import pytest

from monolora.reporting.charts import SHARES, Line, Measured, Point, axis_of, curves, panel


def _measured(value: float | None, low: float | None = None, high: float | None = None) -> Measured:
    return Measured("lora", "c1", value, low, high, "text")


def test_a_panel_puts_values_and_intervals_on_its_axis() -> None:
    shown = panel("title", [_measured(25.0, 20.0, 100.0), _measured(None)], SHARES, reference=50.0, finding="So it is.")
    first, second = shown.marks
    assert (first.at, first.low, first.high) == (25, 20, 100)
    assert (second.at, second.low, second.high) == (None, None, None)
    assert (shown.reference, shown.title, shown.finding) == (50, "title", "So it is.")


def test_a_bars_axis_begins_at_zero_and_a_share_ends_at_100() -> None:
    far = _measured(1.55, 1.27, 1.83)
    assert axis_of([far]).low > 0
    assert (axis_of([far], is_bar=True).low, axis_of([far], is_bar=True).high) == (0, 2)
    share = axis_of([_measured(99.44)], most=100)
    assert share.high == 100
    assert share.ticks()[-1].label == "100"
    assert share.place(99.44) < 100


def test_an_axis_has_room_for_intervals() -> None:
    ticks = axis_of([_measured(5.0, 1.0, 19.0), _measured(None)]).ticks()
    assert (ticks[0].label, ticks[-1].label) == ("0", "20")


def test_lines_share_their_axes() -> None:
    lines = {
        "lora": Line("c1", [Point(0, 10.0, 5.0, 15.0), Point(100, 20.0, 15.0, 25.0)], "20"),
        "mono": Line("c2", [Point(0, 10.0), Point(200, 30.0)], "30"),
    }
    shown = curves("drift", lines)
    lora, mono = shown.series
    assert lora.points == [(0, pytest.approx(100 / 3, abs=0.01)), (50, pytest.approx(200 / 3, abs=0.01))]
    assert mono.points[1] == (100, 100)
    assert lora.segments == [(lora.points[0], lora.points[1])]
    assert len(lora.band.split()) == 4  # a corner an end of each interval
    assert mono.band == ""
    assert [series.last for series in shown.series] == ["20", "30"]
