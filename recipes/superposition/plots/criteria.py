"""J of mono and poly against noise, for each criterion."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monolora.recipes.experiments.plots.style import INK, PALE, titled
from monolora.recipes.superposition.plots.colours import COLOURS
from monolora.recipes.superposition.settings import MONO, POLY
from monolora.recipes.superposition.theory.arithmetic import SAME_LENGTH
from monolora.recipes.superposition.theory.criteria import CRITERIA, separability
from monolora.recipes.superposition.theory.crossing import Noise, crossover

S = Fraction(1, 2)
_AXES: Mapping[Noise, tuple[str, float, str]] = {
    "label": ("label noise η", 0.5, "4.2"),
    "input": ("input noise ε", 1.0, "B.9"),
}
_STYLES = {  # representation: label, colour, line
    MONO: ("mono, x₁", COLOURS[MONO], "-"),
    POLY: ("poly, x₁ − x₂", COLOURS[POLY], "-"),
    SAME_LENGTH: ("poly, (x₁ − x₂)/√2", COLOURS[POLY], "--"),
}


def draw(noise: Noise) -> Figure:
    """A panel for each criterion; where mono overtakes, a ring."""
    words, end, theorem = _AXES[noise]
    figure = titled(
        f"Separability J against {words}, at S = {S}",
        f"Closed forms (theorems 4.1, {theorem}). The paper's text has lost its formula for J: each panel is one "
        "reading. ○ mono overtakes poly. Dashed: the same pair of features with weights as long as mono's, the same to "
        "any linear classifier. A J with * does not change with the scale of h.",
        9.6,
        5.4,
    )
    panels = figure.subplots(2, 4, sharex=True).flatten()
    for axes, name in zip(panels, CRITERIA, strict=True):
        _panel(axes, name, noise, end)
    for axes in panels[4:]:
        axes.set_xlabel(words)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    return figure


def _panel(axes: Axes, name: str, noise: Noise, end: float) -> None:
    criterion = CRITERIA[name]
    xs = np.linspace(0, end, 101)
    for representation, (label, colour, style) in _STYLES.items():
        values = [separability(float(S), representation, name, **_at(noise, x)) for x in xs]
        axes.plot(xs, [float(value) for value in values], style, color=colour, linewidth=1.6, label=label)
    axes.set_title(f"{name}{'*' if criterion.scale_free else ''}", color=INK)
    axes.annotate(
        f"J = {criterion.formula}", (0, 1), (5, -2), xycoords="axes fraction", textcoords="offset points",
        va="top", fontsize=7.5, color=PALE,
    )  # fmt: skip
    for at in crossover(S, name, noise).at:
        height = float(separability(float(S), MONO, name, **_at(noise, float(at))))
        axes.plot(float(at), height, "o", mfc="none", mec=INK, markersize=8)
    axes.margins(x=0)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + (high - low) * 0.12)  # for the formula


def _at(noise: Noise, value: float) -> dict[str, float]:
    return {"eta": value} if noise == "label" else {"epsilon": value}
