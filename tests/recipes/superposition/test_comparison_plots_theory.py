"""The theory's figures show what the closed forms give."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pytest

from monolora.recipes.superposition import comparison_plots
from monolora.recipes.superposition.theory.crossings import CRITERIA, Noise, crossover, separability
from monolora.recipes.superposition.theory.moments import SAME_LENGTH

pytestmark = pytest.mark.usefixtures("style")


@pytest.mark.parametrize("noise", ["label", "input"])
def test_lines_are_j(noise: Noise) -> None:
    figure = comparison_plots.criteria_figure(noise)
    for axes, name in zip(figure.axes, CRITERIA, strict=True):
        mono, poly, same_length, *rings = axes.lines
        assert axes.get_title(loc="left").rstrip("*") == name
        for line, representation in ((mono, "mono"), (poly, "poly"), (same_length, SAME_LENGTH)):
            for x, y in list(zip(*line.get_data(), strict=True))[::25]:
                noisy = {"eta": float(x)} if noise == "label" else {"epsilon": float(x)}
                assert y == pytest.approx(float(separability(0.5, representation, name, **noisy)))
        levels = [float(ring.get_xdata()[0]) for ring in rings]
        assert levels == [float(level) for level in crossover(Fraction(1, 2), name, noise).at]
        if name == "difference" and noise == "label":
            assert levels == [0.25]
        for ring, x in zip(rings, levels, strict=True):  # on both lines
            height = ring.get_ydata()[0]
            for line in (mono, poly):
                assert np.interp(x, *line.get_data()) == pytest.approx(height, abs=2e-3 * np.ptp(line.get_ydata()))


def test_the_map_says_who_leads() -> None:
    figure = comparison_plots.leaders_figure()
    grid = np.array(figure.axes).reshape(len(CRITERIA), 4)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mono leads", "poly leads"]
    for row, name in zip(grid, CRITERIA, strict=True):
        for axes, (noise, poly, end) in zip(
            row,
            [("label", "poly", 0.5), ("input", "poly", 1.0), ("label", SAME_LENGTH, 0.5), ("input", SAME_LENGTH, 1.0)],
            strict=True,
        ):
            lead_SX = np.asarray(axes.images[0].get_array())
            cells = len(lead_SX)
            for row_index, column_index in ((0, 0), (40, 20), (80, 150), (155, 3), (130, 100)):
                S, x = (row_index + 0.5) / cells, (column_index + 0.5) / cells * end
                noisy = {"eta": x} if noise == "label" else {"epsilon": x}
                mono_is, poly_is = (float(separability(S, h, name, **noisy)) for h in ("mono", poly))
                assert bool(lead_SX[row_index, column_index]) == (mono_is > poly_is)


def test_the_same_bytes_each_time() -> None:
    assert svg() == svg()


def svg() -> bytes:
    out = io.BytesIO()
    comparison_plots.criteria_figure("label").savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
