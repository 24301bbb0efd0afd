"""Figure 1a: the images that activate random dimensions most, polysemantic beside monosemantic."""

from __future__ import annotations

from matplotlib.figure import Figure

from monolora.recipes.experiments.plots.style import titled
from monolora.recipes.vision.results.gathered import DENSE, TITLES, Consistent
from monolora.recipes.vision.results.plots.colours import COLOURS
from monolora.recipes.vision.results.plots.material import Material, NotThereError, first_consistent
from monolora.recipes.vision.results.plots.top_images import (
    COLUMNS,
    consistency_words,
    draw_top_images,
    row_height,
    rows_of,
)

_SIDE = 0.74  # inches of an image


def draw(material: Material) -> Figure:
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
        len(found) * (COLUMNS * _SIDE + 0.3) + 0.2,
        sum(heights) * _SIDE * row_height(images) + 0.35 * n_dimensions + 1.1,
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
