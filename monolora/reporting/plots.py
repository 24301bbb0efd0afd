"""Figures: their style, lines and bars with intervals, and files."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from monolora.files import saving, write_file
from monolora.stats import Estimate

INK, PALE = "#222222", "#767676"

# One hash salt: the same records give the same SVG.
SETTINGS: dict[Any, Any] = {  # matplotlib's type is the list of all its keys
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": PALE,
    "xtick.color": INK,
    "ytick.color": INK,
    "image.composite_image": False,
    "svg.hashsalt": "monolora",
}


def titled(title: str, caption: str, width: float, height: float) -> Figure:
    """An empty figure; sizes in inches."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    # characters of their sizes to an inch
    heading, below = ("\n".join(textwrap.wrap(text, int(width * n))) for text, n in ((title, 10.5), (caption, 17)))
    figure.suptitle(heading, x=0.01, ha="left", weight="bold", fontsize=11)
    figure.supxlabel(below, x=0.01, ha="left", fontsize=7.5, color=PALE, linespacing=1.4)
    return figure


def percent_axis(axes: Axes, title: str, xlabel: str, ylabel: str = "accuracy, %") -> None:
    """Names of a panel and its axes."""
    axes.set_title(title)
    axes.set(xlabel=xlabel, ylabel=ylabel)


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
        known = [(x, mean) for x, mean in zip(line.xs, line.estimates, strict=True) if mean is not None]
        xs = [x for x, _ in known]
        axes.plot(
            xs, [estimate.mean for _, estimate in known], line.style,
            color=line.colour, marker=line.marker, markersize=4, linewidth=1.6, label=line.label,
        )  # fmt: skip
        band = [(x, *estimate.interval) for x, estimate in known if estimate.interval is not None]
        if band:
            at, low, high = zip(*band, strict=True)
            axes.fill_between(at, low, high, color=line.colour, alpha=0.18, linewidth=0)
            if line.marker:  # a few points: their intervals are to be seen even where they are short
                axes.vlines(at, low, high, color=line.colour, linewidth=1)


def from_zero(*panels: Axes) -> None:
    """Give panels of percentages one scale, which begins at 0."""
    top = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(0, min(top, 102))  # room for markers at 100


def keep_in_sight(axes: Axes, least: float = 0, most: float = 100) -> None:
    """Let the y axis end where no mean can be: intervals over two or three runs may go far beyond."""
    low, high = axes.get_ylim()
    pad = (most - least) / 50  # for markers
    axes.set_ylim(max(low, least - pad), min(high, most + pad))


def label_ends(figure: Figure, panels: Sequence[tuple[Axes, Sequence[Line]]]) -> None:
    """Write each line's name at its right end, moved up or down where two would meet."""
    figure.draw_without_rendering()  # only then the panels have their sizes
    for axes, lines in panels:
        named = [(line, last) for line in lines if line.label and (last := _last(line)) is not None]
        if not named:
            continue
        (bottom, top), height = axes.get_ylim(), axes.get_window_extent().height
        wanted = np.array([(last.mean - bottom) / (top - bottom) for _, last in named])
        gap = _LABEL_POINTS * figure.dpi / 72 / height
        for (line, _), y in zip(named, _apart(wanted, gap), strict=True):
            axes.annotate(
                line.label, (1, y), (4, 0), xycoords="axes fraction", textcoords="offset points",
                color=line.colour, va="center", fontsize=8, annotation_clip=False,
            )  # fmt: skip


def _last(line: Line) -> Estimate | None:
    return next((estimate for estimate in reversed(line.estimates) if estimate is not None), None)


def _apart(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Positions at least ``gap`` apart, near those wanted, in their order: overlapping groups share their middle."""
    groups: list[list[int]] = []
    middles: list[float] = []
    for index in np.argsort(wanted, kind="stable"):
        groups.append([int(index)])
        middles.append(float(wanted[index]))
        while len(groups) > 1 and middles[-1] - middles[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2:
            merged = groups[-2] + groups[-1]
            groups[-2:], middles[-2:] = [merged], [float(wanted[merged].mean())]
    positions = wanted.copy()
    for group, middle in zip(groups, middles, strict=True):
        positions[group] = middle + gap * (np.arange(len(group)) - (len(group) - 1) / 2)
    return positions


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
    mean, interval = bar.estimate.mean, bar.estimate.interval
    axes.bar(
        x, mean, _WIDTH,
        color=bar.colour, alpha=0.45 if bar.pale else 1,
        yerr=None if interval is None else [[mean - interval.low], [interval.high - mean]],
        error_kw={"ecolor": INK, "elinewidth": 0.9, "capsize": 2.5},
    )  # fmt: skip
    axes.annotate(
        f"{mean:.{places}f}", (x, mean if interval is None else interval.high), (0, 2),
        textcoords="offset points", ha="center", va="bottom", fontsize=7.5,
    )  # fmt: skip


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write NAME.png and NAME.svg; the same figure gives the same bytes.

    Raises:
        SaveError: if the disk does not take them.
    """
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_file(paths[0], lambda aside: figure.savefig(aside, dpi=150))
        write_file(paths[1], lambda aside: figure.savefig(aside, metadata={"Date": None}))
    return paths
