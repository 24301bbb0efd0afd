"""The figures of the linear probes show what the records say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from scipy import stats

from monolora.recipes.vision.paper_comparison import TABLE1
from monolora.recipes.vision.settings import Settings
from tests.support.vision_records import RATES, SCALES


def line(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    (match,) = [line for line in axes.lines if line.get_label() == label]
    return list(match.get_xdata()), list(match.get_ydata())


def bars(axes: Axes) -> list[float]:
    return [patch.get_height() for patch in axes.patches]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_table1_draws_means_bands_and_the_papers_lines(
    figure_of: Callable[..., Figure], results: Callable[[str], dict[str, Any]]
) -> None:
    (axes,) = figure_of("fig-table1", seeds=(0, 1, 2)).axes
    papers = [line for line in axes.lines if line.get_label().startswith("_")]
    named = (("simclr", "CL"), ("sae", "SAE"), ("ncl", "NCL"))
    bands = [each for each in axes.collections if isinstance(each, PolyCollection)]
    for (name, label), band, paper in zip(named, bands, papers, strict=True):
        means = [
            [fmean(results(f"probe/{name}-{seed}")["accuracy"]["ce"][str(rate)]) for seed in (0, 1, 2)]
            for rate in RATES
        ]
        xs, ys = line(axes, label)
        assert xs == pytest.approx([100 * rate for rate in RATES])
        assert ys == pytest.approx([100 * fmean(seeds) for seeds in means])
        low, high = stats.t.interval(0.95, 2, fmean(means[-1]), stats.sem(means[-1]))
        ends = [y for x, y in band.get_paths()[0].vertices if x == pytest.approx(90)]
        assert (min(ends), max(ends)) == pytest.approx((100 * low, 100 * high))
        assert list(paper.get_ydata()) == list(TABLE1["CIFAR-100"][name])
    assert texts(axes) == ["CL", "SAE", "NCL"]
    assert axes.get_ylim()[0] == 0


def test_one_run_has_no_bands(figure_of: Callable[..., Figure]) -> None:
    figure = figure_of("fig-table1", draws=1)
    assert not figure.axes[0].collections
    assert "One run each: no interval." in figure.get_supxlabel()


def test_other_data_have_no_lines_of_the_paper(figure_of: Callable[..., Figure]) -> None:
    figure = figure_of("fig-table1", data={"dataset": "data/pets"})
    assert len(figure.axes[0].lines) == 3
    assert "The paper has no numbers for pets." in figure.get_supxlabel()


def test_figure_1b_has_the_highest_rate_and_the_nearest_scale(
    write_records: Callable[..., Settings], draw: Callable[..., Figure], results: Callable[[str], dict[str, Any]]
) -> None:
    settings = write_records()
    for path in (Path(settings.common.out) / "probe").iterdir():
        record = json.loads(path.read_text())
        del record["results"]["accuracy"]["ce"]["0.9"], record["results"]["input_noise"]["gaussian"]["0.6"]
        path.write_text(json.dumps(record))
    (axes,) = draw("fig1b").axes
    probes = [results(f"probe/{name}-0") for name in ("simclr", "sae", "ncl")]
    expected = [probe["accuracy"]["ce"]["0.0"] for probe in probes]
    expected += [probe["accuracy"]["ce"]["0.8"] for probe in probes]
    expected += [probe["input_noise"]["gaussian"]["0.4"] for probe in probes]
    assert bars(axes) == pytest.approx([100 * fmean(accuracies) for accuracies in expected])
    groups = [label.get_text().strip() for label in axes.child_axes[0].get_xticklabels()]
    assert groups == ["clean", "80 % label noise", "Gaussian noise 0.4"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["CL", "SAE", "NCL"] * 3


def test_figure_2_has_a_panel_for_each_kind(
    figure_of: Callable[..., Figure], results: Callable[[str], dict[str, Any]]
) -> None:
    uniform, gaussian, ood = figure_of("fig2", ood=("sketch", "stylized")).axes
    for axes, kind in ((uniform, "uniform"), (gaussian, "gaussian")):
        for name, label in (("simclr", "CL"), ("ncl", "NCL")):
            by_scale = results(f"probe/{name}-0")["input_noise"][kind]
            assert line(axes, label) == (
                list(SCALES), pytest.approx([100 * fmean(by_scale[str(scale)]) for scale in SCALES])
            )  # fmt: skip
    assert uniform.get_ylim() == gaussian.get_ylim()
    assert uniform.get_ylim()[0] == ood.get_ylim()[0] == 0
    assert all(len(axes.collections) == 6 for axes in (uniform, gaussian))  # a band and intervals a line
    expected = [
        100 * fmean(results(f"probe/{name}-0")["ood"][kind])
        for kind in ("sketch", "stylized")
        for name in ("simclr", "sae", "ncl")
    ]
    assert bars(ood) == pytest.approx(expected)


def test_figure_2_has_no_panel_for_images_that_were_not_given(figure_of: Callable[..., Figure]) -> None:
    assert [axes.get_title("left") for axes in figure_of("fig2", ood=()).axes] == [
        "a  uniform noise",
        "b  Gaussian noise",
    ]


def test_figure_6_has_both_losses_and_their_difference(
    figure_of: Callable[..., Figure], results: Callable[[str], dict[str, Any]]
) -> None:
    *panels, less = figure_of("fig6", seeds=(0, 1)).axes
    for axes, name, label in zip(panels, ("simclr", "sae", "ncl"), ("CL", "SAE", "NCL"), strict=True):
        ce, sce = (
            np.array(
                [
                    [fmean(results(f"probe/{name}-{seed}")["accuracy"][loss][str(rate)]) for seed in (0, 1)]
                    for rate in RATES
                ]
            ).mean(1)
            for loss in ("ce", "sce")
        )
        assert line(axes, "CE")[1] == pytest.approx(100 * ce)
        assert line(axes, "SCE")[1] == pytest.approx(100 * sce)
        assert line(less, label)[1] == pytest.approx(100 * (sce - ce), abs=1e-9)
