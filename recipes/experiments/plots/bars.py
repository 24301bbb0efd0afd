"""Bars in named groups, each with its name below, its value above, and its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from monolora.recipes.experiments.intervals import Estimate
from monolora.recipes.experiments.plots.style import INK

_WIDTH, _BETWEEN = 0.84, 0.9  # of a bar, and between groups, where bars are 1 apart
_BELOW = 17  # points from the axis to the groups' names, below the bars'
_FEWEST = 5  # fewer bars are no wider than so many


class Bar(NamedTuple):
    """A mean, in the unit that is drawn."""

    label: str
    estimate: Estimate
    colour: str
    pale: bool = False


def draw_bars(axes: Axes, groups: Mapping[str, Sequence[Bar]], places: int = 1) -> None:
    """Draw bars from 0.

    Args:
        axes: whose ticks become the names.
        groups: by name, which stands below its bars.
        places: decimals of the values.
    """
    left, ticks, labels, middles = 0.0, [], [], []
    for bars in groups.values():
        for offset, bar in enumerate(bars):
            _draw_bar(axes, left + offset, bar, places)
            ticks.append(left + offset)
            labels.append(bar.label)
        middles.append(left + (len(bars) - 1) / 2)
        left += len(bars) + _BETWEEN
    middle, reach = ticks[-1] / 2, max(_FEWEST, len(ticks)) / 2 + 0.2
    axes.set_xlim(min(middle - reach, -0.7), max(middle + reach, ticks[-1] + 0.7))
    axes.set_xticks(ticks, labels, fontsize=8)
    axes.tick_params(axis="x", length=0)
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    below = axes.secondary_xaxis(location=0)
    below.set_xticks(middles, list(groups))
    below.tick_params(length=0, pad=_BELOW)
    below.spines["bottom"].set_visible(False)


def _draw_bar(axes: Axes, x: float, bar: Bar, places: int) -> None:
    found = bar.estimate
    half = found.half_width
    axes.bar(
        x, found.mean, _WIDTH,
        color=bar.colour, alpha=0.45 if bar.pale else 1, yerr=half,
        error_kw={"ecolor": INK, "elinewidth": 0.9, "capsize": 2.5},
    )  # fmt: skip
    axes.annotate(
        f"{found.mean:.{places}f}", (x, found.mean + (half or 0)), (0, 2),
        textcoords="offset points", ha="center", va="bottom", fontsize=7.5,
    )  # fmt: skip
