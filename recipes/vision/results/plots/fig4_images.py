"""Figures 4a and 4b: what the dimensions show that a noisy classifier's worst and best class depend on."""

from __future__ import annotations

from matplotlib.figure import Figure

from monolora.recipes.experiments.plots.style import titled
from monolora.recipes.vision.results.gathered import TITLES, SalientDimension
from monolora.recipes.vision.results.plots.colours import COLOURS
from monolora.recipes.vision.results.plots.material import Material, first_consistent
from monolora.recipes.vision.results.plots.top_images import (
    COLUMNS,
    consistency_words,
    draw_top_images,
    row_height,
    rows_of,
    short_name,
)

_SIDE = 0.8  # inches of an image


def draw(material: Material) -> Figure:
    """One row a representation; the worst class to the left, the best to the right."""
    found = first_consistent(material.runs)
    images = material.pictures(found[0])
    heights = [max(rows_of(each.worst.shown), rows_of(each.best.shown)) for each in found]
    figure = titled(
        "Validation images that activate the dimension of a class most",
        "Of the classifier trained on wrong labels: the dimension with its largest weight for the class; pretraining "
        f"seed {found[0].seed}.",
        2 * COLUMNS * _SIDE + 0.9,
        sum(heights) * _SIDE * row_height(images) + 0.75 * len(found) + 0.9,
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
