"""Who is ahead, mono or poly: the difference of their accuracies for all sparsities, noises and training sets."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm, Normalize
from matplotlib.figure import Figure

from monolora.recipes.experiments.intervals import Estimate
from monolora.recipes.experiments.plots.style import INK, titled
from monolora.recipes.superposition.estimates import ahead
from monolora.recipes.superposition.plots.colours import AHEAD, WHO
from monolora.recipes.superposition.recorded import Recorded

_CELL = 0.45, 0.27  # inches
_FEWEST = 4  # fewer columns are no narrower than so many, for their title
_BESIDE = 50  # points from the table to the names of training sets, left of those of sparsities


class _Table(NamedTuple):
    """A panel: its columns, and a row of them for each N and S; None where nothing was measured."""

    noises: list[float]
    rows: list[list[Estimate | None]]


def draw(recorded: Recorded) -> Figure:
    """Label noise left, input noise right; a row for each training set and each sparsity above 0."""
    keys = [(samples, S) for samples in recorded.noise for S in recorded.sparse]
    tables = [_table(recorded, keys, kind) for kind in ("label", "input")]
    widths = [len(table.noises) for table in tables]
    figure = titled(
        "Accuracy without superposition less that with it: mono − poly, points",
        f"{WHO} Points: of a percentage; N: training samples. Wrong labels in training, Gaussian noise on the test "
        "samples. Orange: mono is ahead; blue: poly is; the colours grow with the square root, to tell small "
        f"differences from none. {_bold_in_words(recorded)}",
        max(7.5, _CELL[0] * sum(widths) + 3.0),
        max(3.6, _CELL[1] * len(keys) + 2.1),
    )
    all_axes = figure.subplots(1, 2, width_ratios=[max(_FEWEST, each) for each in widths])
    found = [each.mean for table in tables for row in table.rows for each in row if each is not None]
    most = max(1.0, *map(abs, found))
    norm = FuncNorm((_root, _square), -most, most)
    titles = ("wrong training labels, %", "scale of the Gaussian noise")
    for axes, table, title, unit in zip(all_axes, tables, titles, (100, 1), strict=True):
        _draw_table(axes, table, norm)
        axes.set_title(title)
        axes.set_xticks(range(len(table.noises)), [f"{unit * noise:g}" for noise in table.noises])
    _name_rows(all_axes[0], keys, len(recorded.sparse))
    all_axes[1].set_yticks([])
    for axes in all_axes:
        for place in range(len(recorded.sparse), len(keys), len(recorded.sparse)):
            axes.axhline(place - 0.5, color=INK, linewidth=0.8)
    bar = figure.colorbar(ScalarMappable(norm, AHEAD), ax=list(all_axes), fraction=0.025, pad=0.01)
    bar.set_label("← poly ahead     mono ahead →")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _bold_in_words(recorded: Recorded) -> str:
    n_seeds = recorded.W_Ssmn.shape[1]
    if n_seeds == 1:
        return "One seed: no intervals, nothing bold."
    return (
        f"Means over {n_seeds} seeds; bold where the 95 % t-interval of the differences, paired by seed, excludes 0 "
        "(not corrected for so many cells)."
    )


def _root(points: np.ndarray) -> np.ndarray:
    return np.sign(points) * np.sqrt(np.abs(points))


def _square(roots: np.ndarray) -> np.ndarray:
    return np.sign(roots) * np.square(roots)


def _name_rows(axes: Axes, keys: list[tuple[int, float]], n_sparse: int) -> None:
    axes.set_yticks(range(len(keys)), [f"S = {S:g}" for _, S in keys])
    middles = [place + (n_sparse - 1) / 2 for place in range(0, len(keys), n_sparse)]
    beside = axes.secondary_yaxis(location=0)
    beside.set_yticks(middles, [f"N = {samples:,}" for samples, _ in keys[::n_sparse]])
    beside.tick_params(length=0, pad=_BESIDE)
    beside.spines["left"].set_visible(False)


def _table(recorded: Recorded, keys: list[tuple[int, float]], kind: str) -> _Table:
    noises = sorted({noise for samples, _ in keys for noise in recorded.noises(samples, kind)})
    rows = [
        [recorded.lead(N, S, kind, noise) if noise in recorded.noises(N, kind) else None for noise in noises]
        for N, S in keys
    ]
    return _Table(noises, rows)


def _draw_table(axes: Axes, table: _Table, norm: Normalize) -> None:
    means = np.array([[np.nan if each is None else each.mean for each in row] for row in table.rows])
    axes.pcolormesh(
        np.arange(means.shape[1] + 1) - 0.5, np.arange(means.shape[0] + 1) - 0.5, np.ma.masked_invalid(means),
        cmap=AHEAD, norm=norm, edgecolors="white", linewidth=0.6,
    )  # fmt: skip
    for row, cells in enumerate(table.rows):
        for column, each in enumerate(cells):
            if each is not None:
                _write(axes, column, row, each)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _write(axes: Axes, column: int, row: int, found: Estimate) -> None:
    sure = ahead(found) is not None
    words = f"{found.mean:+.1f}".replace("-", "−")
    axes.text(
        column, row, "0.0" if words[1:] == "0.0" else words, fontsize=8, weight="bold" if sure else "normal",
        ha="center", va="center_baseline",
    )  # fmt: skip
