"""Figures of what features fire on and of what classifiers make of them: 1a, 1b, 4."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from monolora.recipes.vision.figure_data import COLOURS, Material, NotThereError, first_consistent, probed
from monolora.recipes.vision.images import Images
from monolora.recipes.vision.results import DENSE, ORDER, SHORT, TITLES, Consistent, Dimension, SalientDimension
from monolora.reporting.numbers import interval_caption
from monolora.reporting.plots import INK, Bar, draw_bars, titled
from monolora.stats import BySeed, Estimate, estimate

COLUMNS = 4
_SIDE = 96  # pixels of an image; larger ones only make larger files
_LETTERS = 13  # of a class's name on a line


def rows_of(dimension: Dimension) -> int:
    """That its images take."""
    return max(1, -(-len(dimension.images) // COLUMNS))


def row_height(images: Images) -> float:
    """Of an image and its class's name, in sides of an image."""
    return 1.34 if any("\n" in short_name(name) for name in images.classes) else 1.21


def draw_top_images(axes: Axes, images: Images, dimension: Dimension, header: str) -> None:
    """Draw a dimension's images in rows of four.

    Args:
        axes: emptied of all else.
        images: that the dimension's places are of.
        dimension: what is shown.
        header: above.
    """
    height = row_height(images)
    axes.set_axis_off()
    axes.set_title(header, fontsize=8)
    for number, place in enumerate(dimension.images):
        row, column = divmod(number, COLUMNS)
        top = -row * height
        axes.imshow(
            _picture(images, place), extent=(column + 0.03, column + 0.97, top - 0.97, top - 0.03), interpolation="none"
        )
        name = short_name(images.classes[int(images.labels_N[place])])
        for line, words in enumerate(name.split("\n")):
            axes.annotate(
                words, (column + 0.5, top - 0.97), (0, -8 - 7.7 * line), textcoords="offset points",
                ha="center", va="baseline", fontsize=6.5, color=INK,
            )  # fmt: skip
    axes.set(xlim=(0, COLUMNS), ylim=(-height * rows_of(dimension), 0), aspect="equal", anchor="NW")


def short_name(name: str) -> str:
    """A class's name on two lines at most: the first of its synonyms."""
    words = name.split(",")[0].replace("_", " ").strip()
    lines: Sequence[str] = textwrap.wrap(words, _LETTERS, max_lines=2, placeholder=" …")
    return "\n".join(lines)


def consistency_words(dimension: Dimension) -> str:
    """A dimension and its consistency."""
    if dimension.consistency is None:
        return f"dimension {dimension.dimension}, never active"
    return f"dimension {dimension.dimension}, consistency {dimension.consistency:.2f}"


def _picture(images: Images, place: int) -> np.ndarray:
    picture_SS3 = images.pixels_N3SS[place].permute(1, 2, 0).numpy()
    if picture_SS3.shape[0] <= _SIDE:
        return np.ascontiguousarray(picture_SS3)
    return np.asarray(Image.fromarray(picture_SS3).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))


_FIG1A_SIDE = 0.74  # inches of an image


def fig1a(material: Material) -> Figure:
    """One column a representation, one block a dimension."""
    found = first_consistent(material.runs)
    n_dimensions = max(len(each.random) for each in found)
    if not n_dimensions:
        raise NotThereError("no representation has a live dimension")
    images = material.pictures(found[0])
    heights = [
        max(rows_of(each.random[place]) for each in found if place < len(each.random)) for place in range(n_dimensions)
    ]
    figure = titled(
        "Validation images that activate a dimension most",
        f"Dimensions drawn at random among the live ones; pretraining seed {found[0].seed}. Consistency: of all "
        f"validation images that activate the dimension, the share of the most frequent class. {DENSE}",
        len(found) * (COLUMNS * _FIG1A_SIDE + 0.3) + 0.2,
        sum(heights) * _FIG1A_SIDE * row_height(images) + 0.35 * n_dimensions + 1.1,
    )
    grid = figure.add_gridspec(n_dimensions, len(found), height_ratios=heights)
    for column, each in enumerate(found):
        for row, dimension in enumerate(each.random):
            axes = figure.add_subplot(grid[row, column])
            draw_top_images(axes, images, dimension, consistency_words(dimension))
            if row == 0:
                axes.annotate(
                    _heading(each), (0, 1), (0, 22), xycoords="axes fraction", textcoords="offset points",
                    weight="bold", color=COLOURS[each.representation],
                )  # fmt: skip
    return figure


def _heading(found: Consistent) -> str:
    mean = "" if found.consistency is None else f", mean consistency {found.consistency:.2f}"
    return f"{TITLES[found.representation]}{mean}"


_SCALE = 0.6  # of the paper's Gaussian noise


def fig1b(material: Material) -> Figure:
    """Three groups of bars, fewer where something was not measured."""
    runs, names = material.runs, probed(material.runs)
    groups: dict[str, dict[str, BySeed]] = {}
    rates = runs.rates("ce")
    if 0.0 in rates:
        groups["clean"] = {name: runs.accuracy(name, "ce", 0.0) for name in names}
    if rates and rates[-1] > 0:
        groups[f"{100 * rates[-1]:g} % label noise"] = {name: runs.accuracy(name, "ce", rates[-1]) for name in names}
    scales = {scale for each in runs.probed for scale in each.input_noise.get("gaussian", ()) if scale > 0}
    if scales:
        scale = min(scales, key=lambda each: (abs(each - _SCALE), each))
        groups[f"Gaussian noise {scale:g}"] = {name: runs.input_noise(name, "gaussian", scale) for name in names}
    bars = {
        group: [
            Bar(SHORT[name], found.times(100), COLOURS[name])
            for name, values in each.items()
            if (found := estimate(values)) is not None
        ]
        for group, each in groups.items()
    }
    bars = {group: each for group, each in bars.items() if each}
    if not bars:
        raise NotThereError("the probes have no cross entropy; run monolora vision probe --losses ce,sce")
    by_name = {
        SHORT[name]: [bar.estimate for each in bars.values() for bar in each if bar.label == SHORT[name]]
        for name in names
    }
    figure = titled(
        f"Linear probe accuracy on {material.beside.dataset}",
        f"{interval_caption(by_name, 'classifiers')} Label noise is in training only; Gaussian noise only on the "
        "normalised validation images, of classifiers trained on clean labels.",
        max(4.5, 0.4 + 0.5 * sum(len(each) + 1 for each in bars.values())),
        4,
    )
    axes = figure.add_subplot()
    draw_bars(axes, bars)
    axes.set_ylabel("accuracy, %")
    return figure


_FIG4_SIDE = 0.8  # inches of an image


def fig4_images(material: Material) -> Figure:
    """One row a representation; the worst class to the left, the best to the right."""
    found = first_consistent(material.runs)
    images = material.pictures(found[0])
    heights = [max(rows_of(each.worst.shown), rows_of(each.best.shown)) for each in found]
    figure = titled(
        "Validation images that activate the dimension of a class most",
        "Of the classifier trained on wrong labels: the dimension with its largest weight for the class; pretraining "
        f"seed {found[0].seed}.",
        2 * COLUMNS * _FIG4_SIDE + 0.9,
        sum(heights) * _FIG4_SIDE * row_height(images) + 0.75 * len(found) + 0.9,
    )
    grid = figure.add_gridspec(len(found), 2, height_ratios=heights)
    for row, each in enumerate(found):
        for column, (title, salient) in enumerate((("a  worst class", each.worst), ("b  best class", each.best))):
            axes = figure.add_subplot(grid[row, column])
            draw_top_images(axes, images, salient.shown, _header(salient))
            axes.annotate(
                f"{title}, {TITLES[each.representation]}", (0, 1), (0, 33),
                xycoords="axes fraction", textcoords="offset points",
                weight="bold", color=COLOURS[each.representation],
            )  # fmt: skip
    return figure


def _header(salient: SalientDimension) -> str:
    name = short_name(salient.name).replace("\n", " ")
    return f"{name}: accuracy {100 * salient.accuracy:.0f} %\n{consistency_words(salient.shown)}"


def fig4c(material: Material) -> Figure:
    """Two bars a representation."""
    runs = material.runs
    first_consistent(runs)  # there is some
    groups: dict[str, list[Bar]] = {}
    estimates: dict[str, list[Estimate | None]] = {}
    for name in ORDER:
        own = [each for each in runs.consistent if each.representation == name]
        right = estimate({each.seed: each.right for each in own})
        wrong = estimate({each.seed: each.wrong for each in own})
        bars = [
            Bar(label, found, COLOURS[name], pale)
            for label, found, pale in (("right", right, False), ("wrong", wrong, True))
            if found is not None
        ]
        if bars:
            groups[TITLES[name]] = bars
            estimates[SHORT[name]] = [right, wrong]
    if not groups:
        raise NotThereError("no classifier has classified anything; run monolora vision consistency")
    figure = titled(
        "Consistency of each image's most activated dimension",
        "Validation images, by whether the classifier trained on wrong labels is right. "
        f"{interval_caption(estimates, 'draws of wrong labels')} {DENSE}",
        max(4.5, 0.6 + 1.5 * len(groups)),
        4,
    )
    axes = figure.add_subplot()
    draw_bars(axes, groups, places=2)
    axes.set_ylabel("semantic consistency")
    return figure
