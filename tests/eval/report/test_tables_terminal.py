"""The report in a terminal and in a pipe."""

from __future__ import annotations

import io
from typing import Any

import pytest

from monolora.eval.report import show
from monolora.eval.report.lookups import View
from monolora.terminal import Terminal
from tests.support.synthetic_report import make, poisoned


def _printed(results: dict[str, Any], **console: Any) -> str:
    out = io.StringIO()
    show(results, Terminal(file=out, **console))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_every_value_and_interval_is_whole_at_any_width(width: int) -> None:
    results, _ = make(prompts=90)
    text = _printed(results, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    view = View(results)
    for model in view.models:
        for column in view.columns:
            assert view.value(model, column.id) in text
            assert view.interval(model, column.id) in text


def test_a_narrow_terminal_is_not_overrun() -> None:
    results, _ = make()
    assert max(map(len, _printed(results, width=40).splitlines())) <= 40


def test_a_file_gets_plain_text() -> None:
    results, _ = make()
    text = _printed(results)  # no terminal: no colours
    assert "\x1b" not in text
    assert "\x1b[" in _printed(results, force_terminal=True, width=100)


def test_headline_columns_come_first() -> None:
    text = _printed(make()[0], width=200)
    order = [
        "Danger.",
        "Harass.",
        "Hate",
        "Sex.",
        "Avg.",
        "alignment",
        "flagged",
        "accuracy",
        "over-refusal",
        "repetition",
    ]
    places = [text.index(word) for word in [*order, "invalid judgements"]]
    assert places == sorted(places)


def test_what_was_not_measured_is_a_dash() -> None:
    results, _ = make()
    for row in results["cells"].values():
        row["task:sst2/accuracy"] = {"value": None, "low": None, "high": None, "n": 0, "invalid": 60}
    column = next(line for line in _printed(results, width=250).splitlines() if line.startswith("base"))
    assert column.split()[-1] == "–"


def test_only_significant_differences_are_marked() -> None:
    results, _ = make(("base", "lora", "mono"))
    for each in results["differences"]:
        is_the_one = (each["column"], each["model"]) == ("beavertails/beaverdam/flagged", "mono")
        each["p_holm"] = 0.049 if is_the_one else 0.05
        if each["against"] != "base":
            each["p_holm"] = 0.0  # not against the base
    table, _, _ = _printed(results, width=250).partition("What else")
    (line,) = [line for line in table.splitlines() if "*" in line]
    assert line.startswith("mono")
    assert "* differs from base (p < 0.05 after Holm" in _printed(results, width=250)


def test_a_base_alone_has_no_marks_and_no_legend_for_them() -> None:
    text = _printed(make(("base",))[0], width=120)
    assert "*" not in text
    assert "95 % confidence intervals" in text


def test_counts_are_over_all_sets() -> None:
    results, _ = make(("base", "mono"), prompts=60)
    for row in results["counts"]:
        row |= {"responses": 600, "invalid": 4}
    line = next(line for line in _printed(results).partition("Counts")[2].splitlines() if line.startswith("mono"))
    assert line.split()[1:3] == ["1,200", "8"]
    assert line.split()[-1] == "2"


def test_texts_are_not_markup_and_do_not_steer_the_terminal() -> None:
    results, _ = poisoned()
    results["title"] = "[bold]title[/] \x1b[2J"
    text = _printed(results, width=120)
    assert "[bold]title[/]  [2J" in text
    assert "\x1b" not in text
