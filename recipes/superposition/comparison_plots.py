"""Figures that compare mono with poly: the accuracy of classifiers on them, and their separability J in theory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm, LinearSegmentedColormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from monolora.recipes.superposition.encoder_plots import COLOURS, MARKERS
from monolora.recipes.superposition.records import Records, leader, typical_scale
from monolora.recipes.superposition.settings import MONO, POLY
from monolora.recipes.superposition.theory.crossings import CRITERIA, Noise, crossover, separability
from monolora.recipes.superposition.theory.moments import SAME_LENGTH
from monolora.reporting.plots import INK, PALE, Bar, Line, draw_bars, draw_lines, keep_in_sight, label_ends, titled
from monolora.stats import Estimate

_LEGEND = "mono: the encoder trained at S = 0, without superposition; poly: the one trained at the data's own S."

# Of differences mono - poly: paler colours of the leader, for numbers to be read on them.
_LEADS = LinearSegmentedColormap.from_list("ahead", ["#8aa0c4", "#ffffff", "#f0a35e"])
_CELL = 0.45, 0.27  # inches
_MIN_COLUMNS = 4  # a narrower table would have no room for its title
_SAMPLES_PAD = 50  # points from the table to the sizes of training sets, left of the sparsities
_NOISE_AXES = (  # kind, unit, name of the axis
    ("label", 100.0, "wrong training labels, %"),
    ("input", 1.0, "scale of the Gaussian noise"),
)

_S = Fraction(1, 2)  # the sparsity at which J is drawn against noise
_AXES: Mapping[Noise, tuple[str, float, str]] = {  # name, end, the paper's theorem
    "label": ("label noise η", 0.5, "4.2"),
    "input": ("input noise ε", 1.0, "B.9"),
}
_STYLES = {  # representation: label, colour, line
    MONO: ("mono, x₁", COLOURS[MONO], "-"),
    POLY: ("poly, x₁ − x₂", COLOURS[POLY], "-"),
    SAME_LENGTH: ("poly, (x₁ − x₂)/√2", COLOURS[POLY], "--"),
}
_CELLS = 160  # a side of the map of leaders
_MAP_COLUMNS: Mapping[tuple[Noise, str], str] = {
    ("label", "poly"): "label noise\npoly is x₁ − x₂",
    ("input", "poly"): "input noise\npoly is x₁ − x₂",
    ("label", SAME_LENGTH): "label noise\npoly is (x₁ − x₂)/√2",
    ("input", SAME_LENGTH): "input noise\npoly is (x₁ − x₂)/√2",
}


# The toy model's classifiers.


def fig5b(records: Records) -> Figure:
    """Figure 5(b): a panel for each sparsity above 0, on one scale; the largest training set."""
    samples, sparsities = records.most_samples, records.sparse
    n_columns = math.ceil(math.sqrt(len(sparsities)))
    n_rows = math.ceil(len(sparsities) / n_columns)
    figure = titled(
        f"Accuracy without superposition (mono) and with it (poly), {samples:,} training samples",
        f"Linear classifiers. {_LEGEND} Both see the same samples, labels and noise. Label noise is in training only; "
        "Gaussian noise only on the test samples, of classifiers trained on clean labels. "
        f"{records.interval_caption()}",
        max(6.5, 4.4 * n_columns + 0.4),
        2.6 * n_rows + 1.2,
    )
    all_axes = list(figure.subplots(n_rows, n_columns, squeeze=False, sharey=True).flat)
    tops: list[float] = []
    for index, (axes, S) in enumerate(zip(all_axes, sparsities, strict=False)):
        groups = _bars(records, samples, S)
        draw_bars(axes, groups)
        tops += [bar.estimate.high or bar.estimate.mean for bars in groups.values() for bar in bars]
        axes.set_title(f"S = {S:g}")
        if index % n_columns == 0:
            axes.set_ylabel("accuracy, %")
    all_axes[0].set_ylim(0, 1.12 * max(tops))  # of all panels, with room for the numbers
    for axes in all_axes[len(sparsities) :]:
        axes.remove()
    return figure


def _bars(records: Records, samples: int, S: float) -> dict[str, list[Bar]]:
    """Without noise, with the highest rate of wrong labels, and with the typical input noise."""
    rates, scales = records.noise_levels(samples, "label"), records.noise_levels(samples, "input")
    groups = {"clean": ("label", 0.0)}
    if rates[-1] > 0:
        groups[f"{100 * rates[-1]:g} % label noise"] = ("label", rates[-1])
    scale = typical_scale(scales)
    if scale is not None:
        groups[f"Gaussian noise {scale:g}"] = ("input", scale)
    return {
        group: [Bar(name, records.accuracy(samples, S, name, *noise), COLOURS[name]) for name in (MONO, POLY)]
        for group, noise in groups.items()
    }


def by_noise_figure(records: Records) -> Figure:
    """A column for each sparsity above 0: label noise above, input noise below; the largest training set."""
    samples, sparsities = records.most_samples, records.sparse
    n_features = records.W_Ssmn.shape[-1]
    figure = titled(
        f"Accuracy of linear classifiers under noise, {samples:,} training samples",
        f"{_LEGEND} Both see the same samples, labels and noise. Above: noise in the training labels. Below: "
        f"classifiers trained on clean labels, noise on the test samples. {records.interval_caption()} "
        f"Dotted: chance, 1\u00a0in\u00a0{n_features}.",
        max(6.0, 2.55 * len(sparsities) + 0.5),
        5.8,
    )
    all_axes = figure.subplots(len(_NOISE_AXES), len(sparsities), squeeze=False, sharey=True)
    panels: list[tuple[Axes, list[Line]]] = []
    for row, (kind, unit, xlabel) in zip(all_axes, _NOISE_AXES, strict=True):
        row[0].set_ylabel("accuracy, %")
        for axes, S in zip(row, sparsities, strict=True):
            axes.set(title=f"S = {S:g}", xlabel=xlabel)
            axes.axhline(100 / n_features, color=PALE, linestyle=":", linewidth=1)
            lines = [_line(records, samples, S, name, kind, unit) for name in (MONO, POLY)]
            draw_lines(axes, lines)
            panels.append((axes, lines))
    first: Axes = all_axes[0, 0]  # all panels share its scale
    first.set_ylim(bottom=0)
    keep_in_sight(first)
    label_ends(figure, panels)
    return figure


def _line(records: Records, samples: int, S: float, name: str, kind: str, unit: float) -> Line:
    levels = records.noise_levels(samples, kind)
    estimates = [records.accuracy(samples, S, name, kind, level) for level in levels]
    return Line(name, [unit * level for level in levels], estimates, COLOURS[name], MARKERS[name])


class _Table(NamedTuple):
    """The leads of one kind of noise: a row for each N and S, None where nothing was measured."""

    levels: list[float]
    rows: list[list[Estimate | None]]


def differences_figure(records: Records) -> Figure:
    """Label noise left, input noise right; a row for each training set and each sparsity above 0."""
    keys = [(samples, S) for samples in records.noise for S in records.sparse]
    tables = [_table(records, keys, kind) for kind in ("label", "input")]
    widths = [len(table.levels) for table in tables]
    figure = titled(
        "Accuracy without superposition less that with it: mono − poly, points",
        f"{_LEGEND} Points: of a percentage; N: training samples. Wrong labels in training, Gaussian noise on the test "
        "samples. Orange: mono is ahead; blue: poly is; the colours grow with the square root, to tell small "
        f"differences from none. {_bold_caption(records)}",
        max(7.5, _CELL[0] * sum(widths) + 3.0),
        max(3.6, _CELL[1] * len(keys) + 2.1),
    )
    all_axes = figure.subplots(1, 2, width_ratios=[max(_MIN_COLUMNS, width) for width in widths])
    leads = [lead.mean for table in tables for row in table.rows for lead in row if lead is not None]
    limit = max(1.0, *map(abs, leads))
    norm = FuncNorm((_root, _square), -limit, limit)
    for axes, table, (_, unit, title) in zip(all_axes, tables, _NOISE_AXES, strict=True):
        _draw_table(axes, table, norm)
        axes.set_title(title)
        axes.set_xticks(range(len(table.levels)), [f"{unit * level:g}" for level in table.levels])
    _name_rows(all_axes[0], keys, len(records.sparse))
    all_axes[1].set_yticks([])
    for axes in all_axes:
        for row in range(len(records.sparse), len(keys), len(records.sparse)):
            axes.axhline(row - 0.5, color=INK, linewidth=0.8)
    bar = figure.colorbar(ScalarMappable(norm, _LEADS), ax=list(all_axes), fraction=0.025, pad=0.01)
    bar.set_label("← poly ahead     mono ahead →")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _bold_caption(records: Records) -> str:
    n_seeds = records.W_Ssmn.shape[1]
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
    middles = [first + (n_sparse - 1) / 2 for first in range(0, len(keys), n_sparse)]
    samples_axis = axes.secondary_yaxis(location=0)
    samples_axis.set_yticks(middles, [f"N = {samples:,}" for samples, _ in keys[::n_sparse]])
    samples_axis.tick_params(length=0, pad=_SAMPLES_PAD)
    samples_axis.spines["left"].set_visible(False)


def _table(records: Records, keys: list[tuple[int, float]], kind: str) -> _Table:
    levels = sorted({level for samples, _ in keys for level in records.noise_levels(samples, kind)})
    rows = [
        [records.lead(N, S, kind, level) if level in records.noise_levels(N, kind) else None for level in levels]
        for N, S in keys
    ]
    return _Table(levels, rows)


def _draw_table(axes: Axes, table: _Table, norm: Normalize) -> None:
    means = np.array([[np.nan if lead is None else lead.mean for lead in row] for row in table.rows])
    axes.pcolormesh(
        np.arange(means.shape[1] + 1) - 0.5, np.arange(means.shape[0] + 1) - 0.5, np.ma.masked_invalid(means),
        cmap=_LEADS, norm=norm, edgecolors="white", linewidth=0.6,
    )  # fmt: skip
    for row, leads in enumerate(table.rows):
        for column, lead in enumerate(leads):
            if lead is not None:
                _write_lead(axes, column, row, lead)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _write_lead(axes: Axes, column: int, row: int, lead: Estimate) -> None:
    text = f"{lead.mean:+.1f}".replace("-", "−")
    axes.text(
        column, row, "0.0" if text[1:] == "0.0" else text, fontsize=8, weight="bold" if leader(lead) else "normal",
        ha="center", va="center_baseline",
    )  # fmt: skip


# The theory.


def criteria_figure(noise: Noise) -> Figure:
    """J against noise: a panel for each criterion, with a ring where mono overtakes."""
    axis_name, end, theorem = _AXES[noise]
    figure = titled(
        f"Separability J against {axis_name}, at S = {_S}",
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
        axes.set_xlabel(axis_name)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    return figure


def _criterion_panel(axes: Axes, name: str, noise: Noise, end: float) -> None:
    criterion = CRITERIA[name]
    xs = np.linspace(0, end, 101)
    for representation, (label, colour, style) in _STYLES.items():
        values = [separability(float(_S), representation, name, **_level(noise, x)) for x in xs]
        axes.plot(xs, [float(value) for value in values], style, color=colour, linewidth=1.6, label=label)
    axes.set_title(f"{name}{'*' if criterion.scale_free else ''}", color=INK)
    axes.annotate(
        f"J = {criterion.formula}", (0, 1), (5, -2), xycoords="axes fraction", textcoords="offset points",
        va="top", fontsize=7.5, color=PALE,
    )  # fmt: skip
    for level in crossover(_S, name, noise).at:
        height = float(separability(float(_S), MONO, name, **_level(noise, float(level))))
        axes.plot(float(level), height, "o", mfc="none", mec=INK, markersize=8)
    axes.margins(x=0)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + (high - low) * 0.12)  # for the formula


def _level(noise: Noise, value: float) -> dict[str, float]:
    return {"eta": value} if noise == "label" else {"epsilon": value}


def leaders_figure() -> Figure:
    """Who leads at which S and noise: rows are criteria, columns the noises and the lengths of poly's weights."""
    figure = titled(
        "Which representation is more separable? It depends on the criterion",
        "The sign of J(mono) − J(poly) at each sparsity S (upwards) and noise (to the right), from the closed forms. "
        "Mono overtakes poly where blue turns to orange on the way to the right. In the columns on the right poly's "
        "weights are as long as mono's; to a linear classifier it is the same representation. Criteria with * do not "
        "change with the scale of h.",
        9.0,
        10.6,
    )
    grid = figure.subplots(len(CRITERIA), len(_MAP_COLUMNS), sharex="col", sharey=True)
    for row, (panels, name) in enumerate(zip(grid, CRITERIA, strict=True)):
        for axes, ((noise, poly), title) in zip(panels, _MAP_COLUMNS.items(), strict=True):
            _leader_panel(axes, name, noise, poly)
            if row == 0:
                axes.set_title(title, fontsize=8.5)
        star = "*" if CRITERIA[name].scale_free else ""
        panels[0].set_ylabel(f"{name}{star}\n\nS", fontsize=8)
    for axes, (noise, _) in zip(grid[-1], _MAP_COLUMNS, strict=True):
        axes.set_xlabel("η" if noise == "label" else "ε")
    swatches = [Patch(color=COLOURS[name], label=f"{name} leads") for name in (MONO, POLY)]
    figure.legend(handles=swatches, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def _leader_panel(axes: Axes, name: str, noise: Noise, poly: str) -> None:
    end = _AXES[noise][1]
    # J at the middle of each cell: at eta = 1/2 itself both gaps are zero, and nobody leads.
    xs, sparsities = ((np.arange(_CELLS) + 0.5) / _CELLS * high for high in (end, 1.0))
    S_SX, x_SX = np.meshgrid(sparsities, xs, indexing="ij")
    noisy = {"eta": x_SX} if noise == "label" else {"epsilon": x_SX}
    lead_SX = separability(S_SX, MONO, name, **noisy) - separability(S_SX, poly, name, **noisy)
    axes.imshow(
        lead_SX > 0, origin="lower", extent=(0, end, 0, 1), aspect="auto", interpolation="nearest",
        cmap=ListedColormap([COLOURS[POLY], COLOURS[MONO]]), vmin=0, vmax=1,
    )  # fmt: skip
    axes.grid(False)
