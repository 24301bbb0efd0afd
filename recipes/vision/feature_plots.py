"""Figures of the features: the images that activate dimensions most (1a, 4a, 4b), and their consistency (4c)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from monolora.recipes.vision.figure_data import COLOURS, FigureData, MissingDataError, first_seed_consistency
from monolora.recipes.vision.images import Images
from monolora.recipes.vision.paper_comparison import LABEL_DRAWS
from monolora.recipes.vision.results import (
    DENSE_NOTE,
    ORDER,
    SHORT,
    TITLES,
    ConsistencyRecord,
    Dimension,
    SalientDimension,
)
from monolora.reporting.numbers import interval_caption
from monolora.reporting.plots import INK, Bar, draw_bars, titled
from monolora.stats import Estimate, estimate

_COLUMNS = 4  # of a dimension's images
_FIG1A_SIDE, _FIG4_SIDE = 0.74, 0.8  # inches of an image
_MAX_PIXELS = 96  # a side of an image; larger ones only make larger files
_NAME_WIDTH = 13  # letters of a class's name on a line


def fig1a(data: FigureData) -> Figure:
    """Figure 1a: the top images of random dimensions, a column for each representation."""
    consistency_records = first_seed_consistency(data.records)
    n_dimensions = max(len(record.random_dimensions) for record in consistency_records)
    if not n_dimensions:
        raise MissingDataError("no representation has a live dimension")
    images = data.images(consistency_records[0])
    heights = [
        max(_n_rows(record.random_dimensions[i]) for record in consistency_records if i < len(record.random_dimensions))
        for i in range(n_dimensions)
    ]
    figure = titled(
        "Validation images that activate a dimension most",
        f"Dimensions drawn at random among the live ones; pretraining seed {consistency_records[0].seed}. Consistency: "
        "of all validation images that activate the dimension, the share of the most frequent class. "
        f"{DENSE_NOTE}",
        len(consistency_records) * (_COLUMNS * _FIG1A_SIDE + 0.3) + 0.2,
        sum(heights) * _FIG1A_SIDE * _row_height(images) + 0.35 * n_dimensions + 1.1,
    )
    grid = figure.add_gridspec(n_dimensions, len(consistency_records), height_ratios=heights)
    for column, record in enumerate(consistency_records):
        for row, dimension in enumerate(record.random_dimensions):
            axes = figure.add_subplot(grid[row, column])
            _draw_top_images(axes, images, dimension, _dimension_title(dimension))
            if row == 0:
                axes.annotate(
                    _column_title(record), (0, 1), (0, 22), xycoords="axes fraction", textcoords="offset points",
                    weight="bold", color=COLOURS[record.representation],
                )  # fmt: skip
    return figure


def _column_title(record: ConsistencyRecord) -> str:
    mean = "" if record.consistency is None else f", mean consistency {record.consistency:.2f}"
    return f"{TITLES[record.representation]}{mean}"


def fig4ab(data: FigureData) -> Figure:
    """Figures 4a and 4b: top images of the dimensions that a noisy classifier's worst and best class depend on."""
    consistency_records = first_seed_consistency(data.records)
    images = data.images(consistency_records[0])
    heights = [max(_n_rows(record.worst.dimension), _n_rows(record.best.dimension)) for record in consistency_records]
    figure = titled(
        "Validation images that activate the dimension of a class most",
        "Of the classifier trained on wrong labels: the dimension with its largest weight for the class; pretraining "
        f"seed {consistency_records[0].seed}.",
        2 * _COLUMNS * _FIG4_SIDE + 0.9,
        sum(heights) * _FIG4_SIDE * _row_height(images) + 0.75 * len(consistency_records) + 0.9,
    )
    grid = figure.add_gridspec(len(consistency_records), 2, height_ratios=heights)
    for row, record in enumerate(consistency_records):
        for column, (title, salient) in enumerate((("a  worst class", record.worst), ("b  best class", record.best))):
            axes = figure.add_subplot(grid[row, column])
            _draw_top_images(axes, images, salient.dimension, _salient_title(salient))
            axes.annotate(
                f"{title}, {TITLES[record.representation]}", (0, 1), (0, 33),
                xycoords="axes fraction", textcoords="offset points",
                weight="bold", color=COLOURS[record.representation],
            )  # fmt: skip
    return figure


def _salient_title(salient: SalientDimension) -> str:
    name = short_name(salient.class_name).replace("\n", " ")
    return f"{name}: accuracy {100 * salient.accuracy:.0f} %\n{_dimension_title(salient.dimension)}"


def fig4c(data: FigureData) -> Figure:
    """Figure 4c: how consistent the most activated dimensions are of images classified rightly and wrongly."""
    records = data.records
    first_seed_consistency(records)  # raises if there are none
    groups: dict[str, list[Bar]] = {}
    estimates: dict[str, list[Estimate | None]] = {}
    for name in ORDER:
        own = [record for record in records.consistency_records if record.representation == name]
        right = estimate({record.seed: record.right for record in own})
        wrong = estimate({record.seed: record.wrong for record in own})
        bars = [
            Bar(label, mean, COLOURS[name], pale)
            for label, mean, pale in (("right", right, False), ("wrong", wrong, True))
            if mean is not None
        ]
        if bars:
            groups[TITLES[name]] = bars
            estimates[SHORT[name]] = [right, wrong]
    if not groups:
        raise MissingDataError("no classifier has classified anything; run monolora vision consistency")
    figure = titled(
        "Consistency of each image's most activated dimension",
        "Validation images, by whether the classifier trained on wrong labels is right. "
        f"{interval_caption(estimates, LABEL_DRAWS)} {DENSE_NOTE}",
        max(4.5, 0.6 + 1.5 * len(groups)),
        4,
    )
    axes = figure.add_subplot()
    draw_bars(axes, groups, places=2)
    axes.set_ylabel("semantic consistency")
    return figure


# Top images.


def _n_rows(dimension: Dimension) -> int:
    """The number of rows that a dimension's images take."""
    return max(1, -(-len(dimension.images) // _COLUMNS))


def _row_height(images: Images) -> float:
    """The height of an image with its class's name, as a multiple of the image's."""
    return 1.34 if any("\n" in short_name(name) for name in images.classes) else 1.21


def _draw_top_images(axes: Axes, images: Images, dimension: Dimension, title: str) -> None:
    """Draw a dimension's images in rows of four, each above the name of its class."""
    height = _row_height(images)
    axes.set_axis_off()
    axes.set_title(title, fontsize=8)
    for position, index in enumerate(dimension.images):
        row, column = divmod(position, _COLUMNS)
        top = -row * height
        axes.imshow(
            _pixels(images, index), extent=(column + 0.03, column + 0.97, top - 0.97, top - 0.03), interpolation="none"
        )
        name = short_name(images.classes[int(images.labels_N[index])])
        for line, text in enumerate(name.split("\n")):
            axes.annotate(
                text, (column + 0.5, top - 0.97), (0, -8 - 7.7 * line), textcoords="offset points",
                ha="center", va="baseline", fontsize=6.5, color=INK,
            )  # fmt: skip
    axes.set(xlim=(0, _COLUMNS), ylim=(-height * _n_rows(dimension), 0), aspect="equal", anchor="NW")


def short_name(name: str) -> str:
    """A class's name in at most two lines; of synonyms the first."""
    first = name.split(",")[0].replace("_", " ").strip()
    lines: Sequence[str] = textwrap.wrap(first, _NAME_WIDTH, max_lines=2, placeholder=" …")
    return "\n".join(lines)


def _dimension_title(dimension: Dimension) -> str:
    if dimension.consistency is None:
        return f"dimension {dimension.dimension}, never active"
    return f"dimension {dimension.dimension}, consistency {dimension.consistency:.2f}"


def _pixels(images: Images, index: int) -> np.ndarray:
    pixels_SS3 = images.pixels_N3SS[index].permute(1, 2, 0).numpy()
    if pixels_SS3.shape[0] <= _MAX_PIXELS:
        return np.ascontiguousarray(pixels_SS3)
    return np.asarray(Image.fromarray(pixels_SS3).resize((_MAX_PIXELS, _MAX_PIXELS), Image.Resampling.LANCZOS))
