"""Figures of the encoders: figure 5(a), W with and without superposition; and the geometry of all features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.image import AxesImage

from monolora.errors import InputError
from monolora.recipes.superposition.records import Records, feature_share
from monolora.recipes.superposition.settings import MONO, POLY
from monolora.recipes.superposition.toy_model import OPPOSITE, REPRESENTED, quartimax
from monolora.reporting.palette import LIGHT
from monolora.reporting.plots import PALE, Line, draw_lines, label_ends, titled

COLOURS: Mapping[str, str] = {MONO: LIGHT[2], POLY: LIGHT[1]}
MARKERS: Mapping[str, str] = {MONO: "^", POLY: "o"}
TITLES: Mapping[str, str] = {MONO: "without superposition", POLY: "with superposition"}

# Dimensions for each of k features that share d evenly: d / k (Elhage et al., 2022).
_KNOWN = {1.0: "1: alone", 2 / 3: "2/3: three in a plane", 0.5: "1/2: antipodal pair", 2 / 5: "2/5: five in a plane"}
_FORMULA = "‖Wᵢ‖² / Σⱼ (Wᵢ · Wⱼ / ‖Wᵢ‖)²".replace(" ", "\u00a0")  # on one line
_CLOUD_WIDTH = 0.36  # half of a cloud of dots, where sparsities are 1 apart
_GOLDEN = (5**0.5 - 1) / 2  # its multiples spread evenly, without random numbers
_PIXELS = 8  # of an entry's side: viewers of SVG smooth images whose pixels are the entries


class _Encoder(NamedTuple):
    """An encoder as it is drawn."""

    W_mn: np.ndarray
    rotated_mn: np.ndarray
    gram_nn: np.ndarray
    heading: str
    colour: str


def fig5a(records: Records, sparsity: float | None = None) -> Figure:
    """Figure 5(a): both encoders of the first seed, on one scale of colours.

    Args:
        records: of a run.
        sparsity: of the encoder with superposition; by default the typical one.

    Raises:
        InputError: if there is no encoder of that sparsity.
    """
    sparsity = records.typical_sparsity if sparsity is None else sparsity
    if sparsity not in records.sparse:
        choices = ", ".join(f"{S:g}" for S in records.sparse)
        raise InputError(f"There is no encoder with superposition of S = {sparsity:g}. There are {choices}.")
    encoders = [_encoder(records, S, name) for S, name in ((0.0, MONO), (sparsity, POLY))]
    m, n = encoders[0].W_mn.shape
    figure = titled(
        f"Encoders without and with superposition: {n} features in {m} dimensions",
        "Trained on the same random numbers, first seed. A linear layer's axes are arbitrary: RW, with R any rotation, "
        "is the same model as W, with the same WᵀW. So W is shown turned to the axes on which it is sparsest, its rows "
        f"sorted; small, as it was learned. Represented: a column's norm is above {REPRESENTED}; in a pair: two "
        f"represented columns with a cosine below −{-OPPOSITE}. One colour scale for all.",
        9.6,
        6.3,
    )
    matrices = [matrix for encoder in encoders for matrix in (encoder.W_mn, encoder.rotated_mn, encoder.gram_nn)]
    norm = CenteredNorm(halfrange=max(float(np.abs(matrix).max()) for matrix in matrices))
    grid = figure.add_gridspec(2, 5, width_ratios=(1.6, 1, 1.6, 1, 0.08), height_ratios=(1, 1.3))
    for index, encoder in enumerate(encoders):
        image = _draw_encoder(figure, grid, 2 * index, encoder, norm)
    bar = figure.colorbar(image, cax=figure.add_subplot(grid[:, 4]))
    bar.set_label("entry of the matrix")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _encoder(records: Records, S: float, name: str) -> _Encoder:
    W_mn = records.W_Ssmn[records.sparsities.index(S), 0]
    geometry = records.geometry[S]
    n_represented, n_paired = int(geometry.represented[0].sum()), int(geometry.paired[0].sum())
    return _Encoder(
        W_mn,
        quartimax(torch.from_numpy(W_mn)).numpy(),
        W_mn.T @ W_mn,
        f"{TITLES[name].capitalize()}, S = {S:g}:\n"
        f"{n_represented} of {W_mn.shape[1]} features represented, {n_paired} in antipodal pairs",
        COLOURS[name],
    )


def _draw_encoder(figure: Figure, grid: GridSpec, left: int, encoder: _Encoder, norm: CenteredNorm) -> AxesImage:
    """Draw an encoder in two columns of the grid."""
    cells = grid[0, left : left + 2], grid[1, left], grid[1, left + 1]
    large, gram, small = (figure.add_subplot(cell) for cell in cells)
    image = _draw_matrix(large, encoder.rotated_mn, "W, turned to its sparsest axes", "dimension", norm)
    large.annotate(
        encoder.heading, (0, 1), (0, 22), xycoords="axes fraction", textcoords="offset points",
        weight="bold", color=encoder.colour, va="bottom", linespacing=1.4,
    )  # fmt: skip
    _draw_matrix(gram, encoder.gram_nn, "WᵀW", "feature", norm)
    _draw_matrix(small, encoder.W_mn, "W, as learned", "dimension", norm)
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
    return [1, *(tick for tick in range(step, count - step // 2, step) if tick > 1), count]


def geometry_figure(records: Records) -> Figure:
    """Left a dot for each feature and seed; right the shares of the features, over seeds."""
    n_seeds, m, n = records.W_Ssmn.shape[1:]
    figure = titled(
        f"How the encoders hold {n} features in {m} dimensions, by the sparsity of their data",
        "Left: a dot for each feature and seed, spread sideways to be seen; orange: S = 0 (mono); grey: features that "
        f"are not represented, whose column Wᵢ has a norm of at most {REPRESENTED}. Dimensionality: {_FORMULA}. Right: "
        f"{_share_caption(n_seeds)} In pairs: represented, and antipodal to another such feature (cosine below "
        f"−{-OPPOSITE}). Dotted: m features of n, one per dimension.",
        9.6,
        4.6,
    )
    dots, shares = figure.subplots(1, 2, width_ratios=(1.7, 1))
    _draw_dots(dots, records)
    lines = _share_lines(records)
    draw_lines(shares, lines)
    shares.axhline(100 * m / n, color=PALE, linestyle=":", linewidth=1)
    shares.annotate(
        f"m / n = {100 * m / n:.3g} %", (1, 100 * m / n), (-2, -3), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", va="top", fontsize=8,
    )  # fmt: skip
    shares.set(title="Share of the features", ylabel="features, %", ylim=(-2, 102))
    for axes in (dots, shares):
        axes.set_xlabel("sparsity S of the training data")
        axes.set_xticks(range(len(records.sparsities)), [f"{S:g}" for S in records.sparsities])
        axes.set_xlim(-0.5, len(records.sparsities) - 0.5)
    label_ends(figure, [(shares, lines[::-1])])  # of two lines that end alike, the last one's label is the upper
    return figure


def _share_caption(n_seeds: int) -> str:
    return "one seed." if n_seeds == 1 else f"means and 95 % score intervals over {n_seeds} seeds."


def _draw_dots(axes: Axes, records: Records) -> None:
    for index, S in enumerate(records.sparsities):
        geometry, name = records.geometry[S], MONO if S == 0 else POLY
        values, represented = geometry.dimensionality.ravel(), geometry.represented.ravel()
        xs = index + _CLOUD_WIDTH * (2 * (np.arange(len(values)) * _GOLDEN % 1) - 1)
        for mask, colour in ((~represented, "#b8b8b8"), (represented, COLOURS[name])):
            axes.scatter(
                xs[mask], values[mask], s=11, marker=MARKERS[name], color=colour, alpha=0.6, linewidth=0, zorder=2
            )
    for value, label in _KNOWN.items():
        axes.axhline(value, color=PALE, linestyle=":", linewidth=1, zorder=1)
        axes.annotate(
            label, (1, value), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
    axes.grid(visible=False)
    axes.set(title="Dimensionality of each feature", ylabel="dimensions for a feature", ylim=(-0.03, 1.06))


def _share_lines(records: Records) -> list[Line]:
    xs = range(len(records.sparsities))
    geometries = [records.geometry[S] for S in records.sparsities]
    represented = [feature_share(geometry.represented) for geometry in geometries]
    paired = [feature_share(geometry.paired) for geometry in geometries]
    return [
        Line("represented", xs, represented, "#222222", "s"),
        Line("in pairs", xs, paired, LIGHT[3], "D", "--"),
    ]
