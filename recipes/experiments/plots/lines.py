"""Lines with bands, each named at its right end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monolora.recipes.experiments.intervals import Estimate

_LABEL_POINTS = 10.5  # from one label to the next


class Line(NamedTuple):
    """Means along an axis.

    Attributes:
        label: written at its end; "" for none.
        estimates: in the unit that is drawn; None where nothing was measured.
    """

    label: str
    xs: Sequence[float]
    estimates: Sequence[Estimate | None]
    colour: str
    marker: str = ""
    style: str = "-"


def draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Draw means and their intervals; the labels come with :func:`label_ends`."""
    for line in lines:
        there = [(x, found) for x, found in zip(line.xs, line.estimates, strict=True) if found is not None]
        xs = [x for x, _ in there]
        axes.plot(
            xs, [found.mean for _, found in there], line.style,
            color=line.colour, marker=line.marker, markersize=4, linewidth=1.6, label=line.label,
        )  # fmt: skip
        band = [(x, found.low, found.high) for x, found in there if found.low is not None and found.high is not None]
        if band:
            at, low, high = zip(*band, strict=True)
            axes.fill_between(at, low, high, color=line.colour, alpha=0.18, linewidth=0)


def keep_in_sight(axes: Axes, least: float = 0, most: float = 100) -> None:
    """Let the y axis end where no mean can be: intervals over two or three runs may go far beyond."""
    low, high = axes.get_ylim()
    pad = (most - least) / 50  # for markers
    axes.set_ylim(max(low, least - pad), min(high, most + pad))


def label_ends(figure: Figure, panels: Sequence[tuple[Axes, Sequence[Line]]]) -> None:
    """Write each line's name at its right end, moved up or down where two would meet."""
    figure.draw_without_rendering()  # only then the panels have their sizes
    for axes, lines in panels:
        named = [(line, found) for line in lines if line.label and (found := _last(line)) is not None]
        if not named:
            continue
        (bottom, top), height = axes.get_ylim(), axes.get_window_extent().height
        wanted = np.array([(found.mean - bottom) / (top - bottom) for _, found in named])
        gap = _LABEL_POINTS * figure.dpi / 72 / height
        for (line, _), place in zip(named, _apart(wanted, gap), strict=True):
            axes.annotate(
                line.label, (1, place), (4, 0), xycoords="axes fraction", textcoords="offset points",
                color=line.colour, va="center", fontsize=8, annotation_clip=False,
            )  # fmt: skip


def _last(line: Line) -> Estimate | None:
    return next((found for found in reversed(line.estimates) if found is not None), None)


def _apart(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Places at least ``gap`` apart, near those wanted, in their order: groups that meet share their middle."""
    groups: list[list[int]] = []
    middles: list[float] = []
    for place in np.argsort(wanted, kind="stable"):
        groups.append([int(place)])
        middles.append(float(wanted[place]))
        while len(groups) > 1 and middles[-1] - middles[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2:
            merged = groups[-2] + groups[-1]
            groups[-2:], middles[-2:] = [merged], [float(wanted[merged].mean())]
    found = wanted.copy()
    for group, middle in zip(groups, middles, strict=True):
        found[group] = middle + gap * (np.arange(len(group)) - (len(group) - 1) / 2)
    return found
