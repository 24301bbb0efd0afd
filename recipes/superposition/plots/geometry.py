"""How the encoders hold their features: dimensions for each, and antipodal pairs, by sparsity."""

from __future__ import annotations

from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monolora.recipes.experiments.intervals import Estimate, estimate
from monolora.recipes.experiments.plots.lines import Line, draw_lines, label_ends
from monolora.recipes.experiments.plots.style import PALE, titled
from monolora.recipes.superposition.plots.colours import COLOURS, MARKERS
from monolora.recipes.superposition.recorded import Recorded
from monolora.recipes.superposition.settings import MONO, POLY
from monolora.recipes.superposition.toy.geometry import OPPOSITE, REPRESENTED

# Dimensions for each of k features that share d evenly: d / k (Elhage et al. 2022).
_KNOWN = {1.0: "1: alone", 2 / 3: "2/3: three in a plane", 0.5: "1/2: antipodal pair", 2 / 5: "2/5: five in a plane"}
_FORMULA = "‖Wᵢ‖² / Σⱼ (Wᵢ · Wⱼ / ‖Wᵢ‖)²".replace(" ", "\u00a0")  # on one line
_HALF_WIDTH = 0.36  # of a cloud of dots, where sparsities are 1 apart
_GOLDEN = (5**0.5 - 1) / 2  # whose multiples spread evenly, without chance


def draw(recorded: Recorded) -> Figure:
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
