"""Labels at the ends of lines are near their lines, in order, and apart; bars and panels show what they are given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from monolora.reporting.plots import Bar, _apart, draw_bars, from_zero
from monolora.stats import Estimate


@pytest.mark.parametrize(
    ("wanted", "positions"),
    [
        ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),
        ([0.52, 0.5], [0.56, 0.46]),
        ([0.5, 0.5, 0.5], [0.4, 0.5, 0.6]),
        ([0.30, 0.38, 0.44], [0.273333, 0.373333, 0.473333]),
    ],
)
def test_labels_keep_their_distance_and_order(wanted: list[float], positions: list[float]) -> None:
    assert _apart(np.array(wanted), 0.1) == pytest.approx(positions, abs=1e-6)


def test_intervals_of_bars_need_not_be_symmetric() -> None:
    axes = Figure().subplots()
    draw_bars(
        axes, {"group": [Bar("all", Estimate(97.0, 80.0, 100.0), "#000000"), Bar("one", Estimate(50.0), "#000000")]}
    )
    (container,) = [each for each in axes.containers if getattr(each, "errorbar", None) is not None]
    ((low, high),) = [segment[:, 1] for segment in container.errorbar.lines[2][0].get_segments()]
    assert (low, high) == pytest.approx((80, 100))


def test_panels_of_percentages_have_one_scale_from_zero() -> None:
    panels = Figure().subplots(1, 2)
    for axes, top in zip(panels, (40, 60), strict=True):
        axes.plot([0, 1], [30, top])
    from_zero(*panels)
    assert panels[0].get_ylim() == panels[1].get_ylim()
    assert panels[0].get_ylim()[0] == 0
    assert 60 < panels[0].get_ylim()[1] < 70
