"""Figures that compare the features: by noise, paired differences, and the theory's criteria."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from monolora.recipes.superposition.records import Recorded, ahead
from monolora.recipes.superposition.settings import MONO, POLY
from monolora.recipes.superposition.theory.crossings import CRITERIA, Noise, crossover, separability
from monolora.recipes.superposition.theory.moments import SAME_LENGTH
from monolora.recipes.superposition.toy_plots import AHEAD, COLOURS, MARKERS, WHO
from monolora.reporting.plots import INK, PALE, Line, draw_lines, keep_in_sight, label_ends, titled
from monolora.stats import Estimate

_ROWS = (  # kind, unit, name of the axis
    ("label", 100.0, "wrong training labels, %"),
    ("input", 1.0, "scale of the Gaussian noise"),
)


def by_noise_figure(recorded: Recorded) -> Figure:
    """A column a sparsity above 0: label noise above, input noise below; the largest training set."""
    samples, sparsities = recorded.most_samples, recorded.sparse
    n_features = recorded.W_Ssmn.shape[-1]
    figure = titled(
        f"Accuracy of linear classifiers under noise, {samples:,} training samples",
        f"{WHO} Both see the same samples, labels and noise. Above: noise in the training labels. Below: "
        f"classifiers trained on clean labels, noise on the test samples. {recorded.intervals_in_words()} "
        f"Dotted: chance, 1\u00a0in\u00a0{n_features}.",
        max(6.0, 2.55 * len(sparsities) + 0.5),
        5.8,
    )
    all_axes = figure.subplots(len(_ROWS), len(sparsities), squeeze=False, sharey=True)
    panels: list[tuple[Axes, list[Line]]] = []
    for row, (kind, unit, xlabel) in zip(all_axes, _ROWS, strict=True):
        row[0].set_ylabel("accuracy, %")
        for axes, S in zip(row, sparsities, strict=True):
            axes.set(title=f"S = {S:g}", xlabel=xlabel)
            axes.axhline(100 / n_features, color=PALE, linestyle=":", linewidth=1)
            lines = [_line(recorded, samples, S, name, kind, unit) for name in (MONO, POLY)]
            draw_lines(axes, lines)
            panels.append((axes, lines))
    first: Axes = all_axes[0, 0]  # whose scale all share
    first.set_ylim(bottom=0)
    keep_in_sight(first)
    label_ends(figure, panels)
    return figure


def _line(recorded: Recorded, samples: int, S: float, name: str, kind: str, unit: float) -> Line:
    noises = recorded.noises(samples, kind)
    found = [recorded.accuracy(samples, S, name, kind, noise) for noise in noises]
    return Line(name, [unit * noise for noise in noises], found, COLOURS[name], MARKERS[name])


_CELL = 0.45, 0.27  # inches
_FEWEST = 4  # fewer columns are no narrower than so many, for their title
_BESIDE = 50  # points from the table to the names of training sets, left of those of sparsities


class _Table(NamedTuple):
    """A panel: its columns, and a row of them for each N and S; None where nothing was measured."""

    noises: list[float]
    rows: list[list[Estimate | None]]


def differences_figure(recorded: Recorded) -> Figure:
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


def criteria_figure(noise: Noise) -> Figure:
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
        _criterion_panel(axes, name, noise, end)
    for axes in panels[4:]:
        axes.set_xlabel(words)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    return figure


def _criterion_panel(axes: Axes, name: str, noise: Noise, end: float) -> None:
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


_CELLS = 160
_COLUMNS: Mapping[tuple[Noise, str], str] = {
    ("label", "poly"): "label noise\npoly is x₁ − x₂",
    ("input", "poly"): "input noise\npoly is x₁ − x₂",
    ("label", SAME_LENGTH): "label noise\npoly is (x₁ − x₂)/√2",
    ("input", SAME_LENGTH): "input noise\npoly is (x₁ − x₂)/√2",
}
_ENDS: Mapping[Noise, float] = {"label": 0.5, "input": 1.0}


def leaders_figure() -> Figure:
    """A row for each criterion, a column for each noise and each length of poly's weights."""
    figure = titled(
        "Which representation is more separable? It depends on the criterion",
        "The sign of J(mono) − J(poly) at each sparsity S (upwards) and noise (to the right), from the closed forms. "
        "Mono overtakes poly where blue turns to orange on the way to the right. In the columns on the right poly's "
        "weights are as long as mono's; to a linear classifier it is the same representation. Criteria with * do not "
        "change with the scale of h.",
        9.0,
        10.6,
    )
    grid = figure.subplots(len(CRITERIA), len(_COLUMNS), sharex="col", sharey=True)
    for row, (panels, name) in enumerate(zip(grid, CRITERIA, strict=True)):
        for axes, ((noise, poly), title) in zip(panels, _COLUMNS.items(), strict=True):
            _leader_panel(axes, name, noise, poly)
            if row == 0:
                axes.set_title(title, fontsize=8.5)
        star = "*" if CRITERIA[name].scale_free else ""
        panels[0].set_ylabel(f"{name}{star}\n\nS", fontsize=8)
    for axes, (noise, _) in zip(grid[-1], _COLUMNS, strict=True):
        axes.set_xlabel("η" if noise == "label" else "ε")
    swatches = [Patch(color=COLOURS[name], label=f"{name} leads") for name in (MONO, POLY)]
    figure.legend(handles=swatches, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def _leader_panel(axes: Axes, name: str, noise: Noise, poly: str) -> None:
    end = _ENDS[noise]
    # middles of cells: at eta = 1/2 itself both gaps are zero
    xs, sparsities = ((np.arange(_CELLS) + 0.5) / _CELLS * high for high in (end, 1.0))
    S_SX, x_SX = np.meshgrid(sparsities, xs, indexing="ij")
    both = {"eta": x_SX} if noise == "label" else {"epsilon": x_SX}
    lead_SX = separability(S_SX, MONO, name, **both) - separability(S_SX, poly, name, **both)
    axes.imshow(
        lead_SX > 0, origin="lower", extent=(0, end, 0, 1), aspect="auto", interpolation="nearest",
        cmap=ListedColormap([COLOURS[POLY], COLOURS[MONO]]), vmin=0, vmax=1,
    )  # fmt: skip
    axes.grid(False)
