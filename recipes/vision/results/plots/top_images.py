"""The images that activate a dimension most, side by side, each with its class."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from monolora.recipes.experiments.plots.style import INK
from monolora.recipes.vision.images import Images
from monolora.recipes.vision.results.gathered import Dimension

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
