"""How all figures look: colours, type, titles above and captions below."""

from __future__ import annotations

import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

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
