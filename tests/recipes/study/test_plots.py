"""What keeping the base costs the task, as a figure: its points are the runs', its lines the fronts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from monolora.eval.measures.table import Column
from monolora.recipes.study.plots import front, keepers, trade
from monolora.recipes.study.results import BASE, Values
from monolora.recipes.study.settings import Study

ADAPTERS: dict[str, dict[str, Any]] = {
    "LoRA": {"adapter": "lora"},
    "MonoLoRA+silence": {"adapter": "monolora", "keep": ["silence"], "keep_samples": 9},
    "MonoLoRA": {"adapter": "monolora"},
    "LoRA+kl": {"adapter": "lora", "keep": "kl"},
    "LoRA+both": {"adapter": "lora", "keep": ["kl", "replay"]},
}


def _values(aspect: Any, by_model: dict[str, list[float]], headline: bool) -> Values:
    """A value of each seed, which two prompts have, the second with an answer that is missing for the third."""
    column = Column(metric=aspect, aspect=aspect, set="s", title=aspect, group="", description="", headline=headline)
    tables = {name: np.array([[value, value, np.nan] for value in own]) for name, own in by_model.items()}
    return Values(column, np.array([1.0, 3.0, 2.0]), tables)


@pytest.fixture
def keeping(study: Study) -> Study:
    return replace(study, adapters=ADAPTERS)


def test_what_is_kept_by_adapter(study: Study, keeping: Study) -> None:
    assert keepers(study) == {}
    assert list(keepers(keeping).values()) == ["", "silence", "", "kl", "kl+replay"]


def test_a_front_is_what_nothing_beats() -> None:
    points = [(80.0, 0.3), (82.0, 0.4), (79.0, 0.35), (70.0, 0.01), (82.0, 0.5), (60.0, 0.01)]
    assert front(points) == [(70.0, 0.01), (80.0, 0.3), (82.0, 0.4)]
    assert front([]) == []


def test_the_figure_has_a_point_for_each_run(keeping: Study) -> None:
    scores = {BASE: [50.0], "LoRA": [80, 82], "MonoLoRA+silence": [78, 80], "MonoLoRA": [81, 81], "LoRA+kl": [70, 72]}
    drifts = {
        BASE: [0.0],
        "LoRA": [0.3, 0.5],
        "MonoLoRA+silence": [0.0, 2e-3],
        "MonoLoRA": [0.2, 0.4],
        "LoRA+kl": [1, 2],
    }
    columns = [_values("task", scores, True), _values("drift", drifts, False), _values("drift", {}, False)]
    figure = trade(keeping, "demo", columns)
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    points = [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "None"]
    runs = [
        (x, max(y, 1e-6)) for name in scores if name != BASE for x, y in zip(scores[name], drifts[name], strict=True)
    ]
    assert np.allclose(sorted(point for own in points for point in own), sorted(runs))
    fronts = {str(line.get_label()): line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "-"}
    assert fronts["LoRA"] == [[81, 0.4]]  # of its methods KL is worse in both
    assert np.allclose(fronts["MonoLoRA"], [[79, (1e-6 + 2e-3) / 2], [81, 0.3]])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["LoRA", "MonoLoRA", "nothing kept", "silence", "kl", "kl+replay"]


def test_no_figure_without_a_drift(keeping: Study) -> None:
    assert trade(keeping, "demo", [_values("task", {"LoRA": [1.0]}, True)]) is None
