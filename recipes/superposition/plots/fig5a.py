"""Figure 5(a): an encoder without superposition beside one with: W, turned to its sparsest axes, and W^T W."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.image import AxesImage

from monolora.errors import InputError
from monolora.recipes.experiments.plots.style import titled
from monolora.recipes.superposition.plots.colours import COLOURS, WORDS
from monolora.recipes.superposition.recorded import Recorded
from monolora.recipes.superposition.settings import MONO, POLY
from monolora.recipes.superposition.toy.geometry import OPPOSITE, REPRESENTED
from monolora.recipes.superposition.toy.turned import turned

_PIXELS = 8  # of an entry's side: viewers of SVG smooth images whose pixels are the entries


class _Shown(NamedTuple):
    """An encoder, as it is shown."""

    W_mn: np.ndarray
    turned_mn: np.ndarray
    gram_nn: np.ndarray
    heading: str
    colour: str


def draw(recorded: Recorded, sparsity: float | None = None) -> Figure:
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
