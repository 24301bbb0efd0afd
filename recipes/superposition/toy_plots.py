"""Figures of the toy model: its geometry, 5a and 5b."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.image import AxesImage

from monolora.errors import InputError
from monolora.recipes.superposition.records import Recorded, shown_scale
from monolora.recipes.superposition.settings import MONO, POLY
from monolora.recipes.superposition.toy_model import OPPOSITE, REPRESENTED, turned
from monolora.reporting.plots import PALE, Bar, Line, draw_bars, draw_lines, label_ends, titled
from monolora.stats import Estimate, estimate

# Told apart with any colour vision, by lightness too; dark enough for names on white.
COLOURS: Mapping[str, str] = {MONO: "#d9730d", POLY: "#4c6285"}
MARKERS: Mapping[str, str] = {MONO: "^", POLY: "o"}
WORDS: Mapping[str, str] = {MONO: "without superposition", POLY: "with superposition"}
WHO = "mono: the encoder trained at S = 0, without superposition; poly: the one trained at the data's own S."

# Of differences mono - poly: paler colours of who is ahead, for numbers to be read on them.
AHEAD = LinearSegmentedColormap.from_list("ahead", ["#8aa0c4", "#ffffff", "#f0a35e"])


# Dimensions for each of k features that share d evenly: d / k (Elhage et al. 2022).
_KNOWN = {1.0: "1: alone", 2 / 3: "2/3: three in a plane", 0.5: "1/2: antipodal pair", 2 / 5: "2/5: five in a plane"}
_FORMULA = "‖Wᵢ‖² / Σⱼ (Wᵢ · Wⱼ / ‖Wᵢ‖)²".replace(" ", "\u00a0")  # on one line
_HALF_WIDTH = 0.36  # of a cloud of dots, where sparsities are 1 apart
_GOLDEN = (5**0.5 - 1) / 2  # whose multiples spread evenly, without chance


def geometry_figure(recorded: Recorded) -> Figure:
    """A dot a feature and seed; beside it, shares of the features."""
    n_seeds, m, n = recorded.W_Ssmn.shape[1:]
    figure = titled(
        f"How the encoders hold {n} features in {m} dimensions, by the sparsity of their data",
        "Left: a dot for each feature and seed, spread sideways to be seen; orange: S = 0 (mono); grey: features that "
        f"are not represented, whose column Wᵢ has a norm of at most {REPRESENTED}. Dimensionality: {_FORMULA}. Right: "
        f"{_shares_in_words(n_seeds)} In pairs: represented, and antipodal to another such feature (cosine below "
        f"−{-OPPOSITE}). Dotted: m features of n, one per dimension.",
        9.6,
        4.6,
    )
    dots, shares = figure.subplots(1, 2, width_ratios=(1.7, 1))
    _draw_dots(dots, recorded)
    lines = _lines(recorded)
    draw_lines(shares, lines)
    shares.axhline(100 * m / n, color=PALE, linestyle=":", linewidth=1)
    shares.annotate(
        f"m / n = {100 * m / n:.3g} %", (1, 100 * m / n), (-2, -3), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", va="top", fontsize=8,
    )  # fmt: skip
    shares.set(title="Share of the features", ylabel="features, %", ylim=(-2, 102))
    for axes in (dots, shares):
        axes.set_xlabel("sparsity S of the training data")
        axes.set_xticks(range(len(recorded.sparsities)), [f"{S:g}" for S in recorded.sparsities])
        axes.set_xlim(-0.5, len(recorded.sparsities) - 0.5)
    label_ends(figure, [(shares, lines[::-1])])  # of equals, the last stands above
    return figure


def _shares_in_words(n_seeds: int) -> str:
    return "one seed." if n_seeds == 1 else f"means and 95 % t-intervals over {n_seeds} seeds."


def _draw_dots(axes: Axes, recorded: Recorded) -> None:
    for place, S in enumerate(recorded.sparsities):
        geometry, name = recorded.geometry[S], MONO if S == 0 else POLY
        values, represented = geometry.dimensionality.ravel(), geometry.represented.ravel()
        xs = place + _HALF_WIDTH * (2 * (np.arange(len(values)) * _GOLDEN % 1) - 1)
        for there, colour in ((~represented, "#b8b8b8"), (represented, COLOURS[name])):
            axes.scatter(
                xs[there], values[there], s=11, marker=MARKERS[name], color=colour, alpha=0.6, linewidth=0, zorder=2
            )
    for value, words in _KNOWN.items():
        axes.axhline(value, color=PALE, linestyle=":", linewidth=1, zorder=1)
        axes.annotate(
            words, (1, value), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
    axes.grid(visible=False)
    axes.set(title="Dimensionality of each feature", ylabel="dimensions for a feature", ylim=(-0.03, 1.06))


def _lines(recorded: Recorded) -> list[Line]:
    xs = range(len(recorded.sparsities))
    geometries = [recorded.geometry[S] for S in recorded.sparsities]
    represented = [_share(each.represented) for each in geometries]
    paired = [_share(each.paired) for each in geometries]
    return [
        Line("represented", xs, represented, "#222222", "s"),
        Line("in pairs", xs, paired, "#1b7f5f", "D", "--"),
    ]


def _share(whether: np.ndarray) -> Estimate | None:
    """Of the features, in %; over seeds."""
    return estimate({seed: [100 * fmean(features)] for seed, features in enumerate(whether.astype(float).tolist())})


_PIXELS = 8  # of an entry's side: viewers of SVG smooth images whose pixels are the entries


class _Shown(NamedTuple):
    """An encoder, as it is shown."""

    W_mn: np.ndarray
    turned_mn: np.ndarray
    gram_nn: np.ndarray
    heading: str
    colour: str


def fig5a(recorded: Recorded, sparsity: float | None = None) -> Figure:
    """Both encoders of the first seed, on one scale of colours.

    Args:
        recorded: what was measured.
        sparsity: of the encoder with superposition; 0.9, or the nearest below that is there, unless given.

    Raises:
        InputError: if there is no encoder of that sparsity.
    """
    sparsity = recorded.typical if sparsity is None else sparsity
    if sparsity not in recorded.sparse:
        there = ", ".join(f"{S:g}" for S in recorded.sparse)
        raise InputError(f"There is no encoder with superposition of S = {sparsity:g}. There are {there}.")
    shown = [_shown(recorded, S, name) for S, name in ((0.0, MONO), (sparsity, POLY))]
    m, n = shown[0].W_mn.shape
    figure = titled(
        f"Encoders without and with superposition: {n} features in {m} dimensions",
        "Trained on the same random numbers, first seed. A linear layer's axes are arbitrary: RW, with R any rotation, "
        "is the same model as W, with the same WᵀW. So W is shown turned to the axes on which it is sparsest, its rows "
        f"sorted; small, as it was learned. Represented: a column's norm is above {REPRESENTED}; in a pair: two "
        f"represented columns with a cosine below −{-OPPOSITE}. One colour scale for all.",
        9.6,
        6.3,
    )
    norm = CenteredNorm(halfrange=max(float(np.abs(each).max()) for one in shown for each in one[:3]))
    grid = figure.add_gridspec(2, 5, width_ratios=(1.6, 1, 1.6, 1, 0.08), height_ratios=(1, 1.3))
    for place, each in enumerate(shown):
        image = _draw_encoder(figure, grid, 2 * place, each, norm)
    bar = figure.colorbar(image, cax=figure.add_subplot(grid[:, 4]))
    bar.set_label("entry of the matrix")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _shown(recorded: Recorded, S: float, name: str) -> _Shown:
    W_mn = recorded.W_Ssmn[recorded.sparsities.index(S), 0]
    geometry = recorded.geometry[S]
    n_represented, n_paired = int(geometry.represented[0].sum()), int(geometry.paired[0].sum())
    return _Shown(
        W_mn,
        turned(torch.from_numpy(W_mn)).numpy(),
        W_mn.T @ W_mn,
        f"{WORDS[name].capitalize()}, S = {S:g}:\n"
        f"{n_represented} of {W_mn.shape[1]} features represented, {n_paired} in antipodal pairs",
        COLOURS[name],
    )


def _draw_encoder(figure: Figure, grid: GridSpec, left: int, shown: _Shown, norm: CenteredNorm) -> AxesImage:
    """In two columns of the grid."""
    cells = grid[0, left : left + 2], grid[1, left], grid[1, left + 1]
    large, gram, small = (figure.add_subplot(cell) for cell in cells)
    image = _draw_matrix(large, shown.turned_mn, "W, turned to its sparsest axes", "dimension", norm)
    large.annotate(
        shown.heading, (0, 1), (0, 22), xycoords="axes fraction", textcoords="offset points",
        weight="bold", color=shown.colour, va="bottom", linespacing=1.4,
    )  # fmt: skip
    _draw_matrix(gram, shown.gram_nn, "WᵀW", "feature", norm)
    _draw_matrix(small, shown.W_mn, "W, as learned", "dimension", norm)
    small.tick_params(labelsize=7)
    return image


def _draw_matrix(axes: Axes, matrix: np.ndarray, title: str, rows: str, norm: CenteredNorm) -> AxesImage:
    n_rows, n_columns = matrix.shape
    image = axes.imshow(
        np.kron(matrix, np.ones((_PIXELS, _PIXELS), matrix.dtype)),
        cmap="RdBu_r", norm=norm, interpolation="none", extent=(0.5, n_columns + 0.5, n_rows + 0.5, 0.5),
    )  # fmt: skip
    axes.set_anchor("NW")
    axes.set_title(title)
    axes.set(xlabel="feature", ylabel=rows, xticks=_ticks(n_columns), yticks=_ticks(n_rows))
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)
    return image


def _ticks(count: int) -> list[int]:
    """First, last, and about two between, counted from 1."""
    step = max(1, round(count / 4 / 5) * 5)
    return [1, *(each for each in range(step, count - step // 2, step) if each > 1), count]


def fig5b(recorded: Recorded) -> Figure:
    """A panel a sparsity above 0, on one scale; the largest training set."""
    samples, sparsities = recorded.most_samples, recorded.sparse
    n_columns = math.ceil(math.sqrt(len(sparsities)))
    n_rows = math.ceil(len(sparsities) / n_columns)
    figure = titled(
        f"Accuracy without superposition (mono) and with it (poly), {samples:,} training samples",
        f"Linear classifiers. {WHO} Both see the same samples, labels and noise. Label noise is in training only; "
        "Gaussian noise only on the test samples, of classifiers trained on clean labels. "
        f"{recorded.intervals_in_words()}",
        max(6.5, 4.4 * n_columns + 0.4),
        2.6 * n_rows + 1.2,
    )
    all_axes = list(figure.subplots(n_rows, n_columns, squeeze=False, sharey=True).flat)
    tops: list[float] = []
    for place, (axes, S) in enumerate(zip(all_axes, sparsities, strict=False)):
        groups = _groups(recorded, samples, S)
        draw_bars(axes, groups)
        tops += [bar.estimate.high or bar.estimate.mean for bars in groups.values() for bar in bars]
        axes.set_title(f"S = {S:g}")
        if place % n_columns == 0:
            axes.set_ylabel("accuracy, %")
    all_axes[0].set_ylim(0, 1.12 * max(tops))  # of all panels, with room for the numbers
    for axes in all_axes[len(sparsities) :]:
        axes.remove()
    return figure


def _groups(recorded: Recorded, samples: int, S: float) -> dict[str, list[Bar]]:
    rates, scales = recorded.noises(samples, "label"), recorded.noises(samples, "input")
    shown = {"clean": ("label", 0.0)}
    if rates[-1] > 0:
        shown[f"{100 * rates[-1]:g} % label noise"] = ("label", rates[-1])
    scale = shown_scale(scales)
    if scale is not None:
        shown[f"Gaussian noise {scale:g}"] = ("input", scale)
    return {
        group: [Bar(name, recorded.accuracy(samples, S, name, *noise), COLOURS[name]) for name in (MONO, POLY)]
        for group, noise in shown.items()
    }
