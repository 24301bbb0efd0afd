"""The figures of the classifiers show what the records say."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.text import Text
from scipy import stats

from monolora.recipes.superposition import comparison_plots
from monolora.recipes.superposition.records import Records
from tests.support.toy_records import RATES, SCALES, SPARSITIES


def accuracies(out: Path, samples: int, S: float, kind: str, noise: float) -> tuple[list[float], list[float]]:
    """The accuracies of mono's and of poly's seeds in the record, in %."""
    accuracy = json.loads((out / f"noise-{samples}.json").read_text())["results"]["accuracy"][str(S)]
    mono, poly = (100 * np.array(accuracy[name][kind][str(noise)]) for name in ("mono", "poly"))
    return list(mono), list(poly)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return float(low), float(high)


@pytest.mark.parametrize("seeds", [3, 1])
def test_bars_are_means_and_their_ends_intervals(
    write_records: Callable[..., Records], tmp_path: Path, seeds: int
) -> None:
    figure = comparison_plots.fig5b(write_records(seeds=seeds, scales=(0.0, 0.4, 0.7)))
    assert [axes.get_title("left") for axes in figure.axes] == [f"S = {S:g}" for S in SPARSITIES[1:]]
    for axes, S in zip(figure.axes, SPARSITIES[1:], strict=True):
        noises = [("label", 0.0), ("label", 0.9), ("input", 0.4)]
        values = [of_encoder for noise in noises for of_encoder in accuracies(tmp_path, 5000, S, *noise)]
        assert [bar.get_height() for bar in axes.patches] == pytest.approx([np.mean(shares) for shares in values])
        whiskers = [
            (path.vertices[0, 1], path.vertices[-1, 1]) for lines in axes.collections for path in lines.get_paths()
        ]
        assert whiskers == [pytest.approx(t_interval(shares)) for shares in values if seeds > 1]
        assert max(map(max, values)) < axes.get_ylim()[1] <= 120
        assert [label.get_text() for label in axes.get_xticklabels()] == 3 * ["mono", "poly"]
        groups = [label.get_text() for label in axes.child_axes[0].get_xticklabels()]
        assert groups == ["clean", "90 % label noise", "Gaussian noise 0.4"]
    assert ("One seed: no intervals." in figure.get_supxlabel().replace("\n", " ")) == (seeds == 1)


def test_without_noise_there_are_clean_bars_only(write_records: Callable[..., Records]) -> None:
    figure = comparison_plots.fig5b(write_records(rates=(0.0,), scales=(0.0,)))
    assert [label.get_text() for label in figure.axes[0].child_axes[0].get_xticklabels()] == ["clean"]


@pytest.mark.parametrize("seeds", [4, 1])
def test_lines_are_means_and_bands_intervals(write_records: Callable[..., Records], tmp_path: Path, seeds: int) -> None:
    figure = comparison_plots.by_noise_figure(write_records(seeds=seeds))
    panels = [(kind, S) for kind in ("label", "input") for S in SPARSITIES[1:]]
    for axes, (kind, S) in zip(figure.axes, panels, strict=True):
        assert axes.get_title("left") == f"S = {S:g}"
        noises, unit = (RATES, 100) if kind == "label" else (SCALES, 1)
        values = [accuracies(tmp_path, 5000, S, kind, noise) for noise in noises]
        bands = [each for each in axes.collections if isinstance(each, PolyCollection)]
        assert len(bands) == (2 if seeds > 1 else 0)  # in the order of the lines
        for index, name in enumerate(("mono", "poly")):
            (line,) = [line for line in axes.lines if line.get_label() == name]
            assert list(line.get_xdata()) == pytest.approx([unit * noise for noise in noises])
            assert list(line.get_ydata()) == pytest.approx([np.mean(of_encoder[index]) for of_encoder in values])
            for band in bands[index : index + 1]:
                last = [y for x, y in band.get_paths()[0].vertices if x == pytest.approx(unit * noises[-1])]
                assert (min(last), max(last)) == pytest.approx(t_interval(values[-1][index]))
        assert {text.get_text() for text in axes.texts} == {"mono", "poly"}


def table(axes: Axes) -> dict[tuple[int, int], Text]:
    """By row and column, top first."""
    top_first = axes.yaxis_inverted()
    assert top_first
    return {(round(text.get_position()[1]), round(text.get_position()[0])): text for text in axes.texts}


@pytest.mark.parametrize("seeds", [3, 1])
def test_differences_are_in_points_bold_where_significant(
    write_records: Callable[..., Records], tmp_path: Path, seeds: int
) -> None:
    label, noise, _ = comparison_plots.differences_figure(write_records(seeds=seeds)).axes
    bold: list[bool] = []
    for axes, kind, noises in ((label, "label", RATES), (noise, "input", SCALES)):
        cells = table(axes)
        rows = [(samples, S) for samples in (1000, 5000) for S in SPARSITIES[1:]]
        assert cells.keys() == set(itertools.product(range(len(rows)), range(len(noises))))
        drawn = axes.collections[0].get_array()
        for (row, column), text in cells.items():
            mono, poly = accuracies(tmp_path, *rows[row], kind, noises[column])
            mean = float(np.mean(mono) - np.mean(poly))
            assert float(text.get_text().replace("−", "-")) == pytest.approx(mean, abs=0.0501)
            significant = seeds > 1 and stats.ttest_rel(mono, poly).pvalue < 0.05
            bold.append(significant)
            assert text.get_fontweight() == ("bold" if significant else "normal")
            assert drawn[row, column] == pytest.approx(mean, abs=1e-9)
    assert set(bold) == ({False, True} if seeds > 1 else {False})
    assert [tick.get_text() for tick in label.get_yticklabels()] == 2 * [f"S = {S:g}" for S in SPARSITIES[1:]]
    assert [tick.get_text() for tick in label.child_axes[0].get_yticklabels()] == ["N = 1,000", "N = 5,000"]
    assert [tick.get_text() for tick in noise.get_xticklabels()] == [f"{scale:g}" for scale in SCALES]


def test_what_only_one_training_set_saw_leaves_a_gap(write_records: Callable[..., Records], tmp_path: Path) -> None:
    write_records(train_samples=(100,), rates=(0.0, 0.5))
    label, *_ = comparison_plots.differences_figure(write_records(train_samples=(200,), rates=(0.0, 0.8))).axes
    gaps = {(row, column) for row in range(8) for column in range(3)} - table(label).keys()
    assert gaps == {(row, 2 if row < 4 else 1) for row in range(8)}
