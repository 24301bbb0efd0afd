"""The figures of the features show the images and the consistency of the records."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monolora.recipes.vision.feature_plots import short_name
from monolora.recipes.vision.images import ImageData
from monolora.recipes.vision.settings import Settings

LONG = ("Staffordshire bullterrier, Staffordshire bull", "great white shark", "sweet_pepper")


def bars(axes: Axes) -> list[float]:
    return [patch.get_height() for patch in axes.patches]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_figure_1a_shows_the_images_of_the_record(
    figure_of: Callable[..., Figure], results: Callable[[str], dict[str, Any]], data: ImageData
) -> None:
    figure = figure_of("fig1a", seeds=(3, 4), shown=5)
    assert len(figure.axes) == 3 * 4
    panels = iter(figure.axes)
    for name in ("simclr", "sae", "ncl"):
        for entry in results(f"consistency/{name}-3")["random_dimensions"]:
            axes = next(panels)
            assert axes.get_title("left") == f"dimension {entry['dimension']}, consistency {entry['consistency']:.2f}"
            for image, index in zip(axes.images, entry["images"], strict=True):
                assert np.array_equal(image.get_array(), data.val.pixels_N3SS[index].permute(1, 2, 0).numpy())
            classes = [data.val.classes[data.val.labels_N[index]] for index in entry["images"]]
            assert texts(axes)[:5] == classes


def test_figure_4ab_names_class_accuracy_and_dimension(
    figure_of: Callable[..., Figure], results: Callable[[str], dict[str, Any]], data: ImageData
) -> None:
    panels = figure_of("fig4ab").axes
    ncl = results("consistency/ncl-0")
    for axes, key in zip(panels[-2:], ("worst_class", "best_class"), strict=True):
        entry = ncl[key]
        assert axes.get_title("left") == (
            f"{entry['class']}: accuracy {100 * entry['accuracy']:.0f} %\n"
            f"dimension {entry['dimension']}, consistency {entry['consistency']:.2f}"
        )
        assert np.array_equal(
            axes.images[0].get_array(), data.val.pixels_N3SS[entry["images"][0]].permute(1, 2, 0).numpy()
        )


def test_figure_4c_has_right_and_wrong(
    figure_of: Callable[..., Figure], results: Callable[[str], dict[str, Any]]
) -> None:
    (axes,) = figure_of("fig4c", seeds=(0, 1)).axes
    expected = [
        fmean(fmean(results(f"consistency/{name}-{seed}")[key]) for seed in (0, 1))
        for name in ("simclr", "sae", "ncl")
        for key in ("right", "wrong")
    ]
    assert bars(axes) == pytest.approx(expected)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["right", "wrong"] * 3


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("sweet_pepper", ["sweet pepper"]),
        ("tench, Tinca tinca", ["tench"]),
        (LONG[0], ["Staffordshire", "bullterrier"]),
        ("black-and-tan coonhound of the mountains", ["black-and-tan", "coonhound …"]),
    ],
)
def test_names_of_classes_take_two_lines_at_most(name: str, lines: list[str]) -> None:
    assert short_name(name).split("\n") == lines


def test_long_names_do_not_meet(
    write_records: Callable[..., Settings], draw: Callable[..., Figure], data: ImageData
) -> None:
    write_records(shown=8)
    images = data.val._replace(classes=LONG, pixels_N3SS=torch.zeros(18, 3, 200, 200, dtype=torch.uint8))
    figure = draw("fig4ab", images)
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.images[0].get_array().shape == (96, 96, 3)
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        pictures = [image.get_window_extent() for image in axes.images]
        assert not any(text.overlaps(picture) for text in boxes for picture in pictures)
