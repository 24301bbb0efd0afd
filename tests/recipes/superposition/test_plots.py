"""Figures of the toy model: what is drawn is what the records say, nothing overlaps, what is not there is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from safetensors.numpy import load_file
from scipy import stats

from monolora.errors import InputError
from monolora.recipes.superposition import comparison_plots, toy_plots
from monolora.recipes.superposition.records import Recorded, read_recorded
from monolora.recipes.superposition.toy_plots import COLOURS
from monolora.reporting import plots
from monolora.reporting.plots import save_figure
from tests.support.toy_records import RATES, SCALES, SPARSITIES, make_records

FIGURES: dict[str, Callable[[Recorded], Figure]] = {
    "geometry": toy_plots.geometry_figure,
    "fig5a": toy_plots.fig5a,
    "fig5b": toy_plots.fig5b,
    "by noise": comparison_plots.by_noise_figure,
    "differences": comparison_plots.differences_figure,
}
SMALL = {"seeds": 1, "sparsities": (0.0, 0.5), "train_samples": (300,), "rates": (0.0, 0.6), "scales": (0.0, 0.2)}


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with matplotlib.rc_context(dict(plots.SETTINGS)):
        yield


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Recorded]:
    """``made(seeds=3)``: made-up records, read."""

    def make(**given: Any) -> Recorded:
        make_records(tmp_path, **given)
        return read_recorded(tmp_path)

    return make


def accuracies(out: Path, samples: int, S: float, kind: str, noise: float) -> tuple[list[float], list[float]]:
    """In %, of mono's and poly's seeds, as the record has them."""
    found = json.loads((out / f"noise-{samples}.json").read_text())["results"]["accuracy"][str(S)]
    mono, poly = (100 * np.array(found[name][kind][str(noise)]) for name in ("mono", "poly"))
    return list(mono), list(poly)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return float(low), float(high)


def shown_texts(figure: Figure) -> list[Text]:
    """All but the numbers at ticks, which matplotlib sets."""
    found = list(figure.texts)
    for axes in figure.axes:
        found += [*axes.texts, axes._left_title, axes.xaxis.label, axes.yaxis.label]  # type: ignore[attr-defined]
        labels = [*axes.get_xticklabels(), *axes.get_yticklabels()]
        found += [each for each in labels if each.get_text()[:1].isalpha()]
        found += [each for child in axes.child_axes for each in (*child.get_xticklabels(), *child.get_yticklabels())]
    return [each for each in found if each.get_visible() and each.get_text().strip()]


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
@pytest.mark.parametrize("given", [{}, SMALL], ids=["five sparsities", "one"])
def test_no_text_overlaps_or_is_cut_off(
    made: Callable[..., Recorded], draw: Callable[[Recorded], Figure], given: dict[str, Any]
) -> None:
    figure = draw(made(**given))
    figure.draw_without_rendering()
    boxes = [(each.get_text(), each.get_window_extent()) for each in shown_texts(figure)]
    for text, box in boxes:
        assert min(box.x0, box.y0) >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for (text, box), (other, beside) in itertools.combinations(boxes, 2):
        assert not box.overlaps(beside), (text, other)
    around = [axes.get_tightbbox() for axes in figure.axes] + [each.get_window_extent() for each in figure.texts]
    assert not [pair for pair in itertools.combinations(around, 2) if pair[0].overlaps(pair[1])]


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_the_same_records_give_the_same_files(
    made: Callable[..., Recorded], tmp_path: Path, draw: Callable[[Recorded], Figure]
) -> None:
    first, second = (
        [path.read_bytes() for path in save_figure(draw(made()), tmp_path / "figures", "figure")] for _ in range(2)
    )
    assert first == second
    assert b"<svg" in first[1]


@pytest.mark.parametrize("seeds", [3, 1])
def test_bars_are_means_and_their_ends_intervals(made: Callable[..., Recorded], tmp_path: Path, seeds: int) -> None:
    figure = toy_plots.fig5b(made(seeds=seeds, scales=(0.0, 0.4, 0.7)))
    assert [axes.get_title("left") for axes in figure.axes] == [f"S = {S:g}" for S in SPARSITIES[1:]]
    for axes, S in zip(figure.axes, SPARSITIES[1:], strict=True):
        shown = [("label", 0.0), ("label", 0.9), ("input", 0.4)]
        values = [each for noise in shown for each in accuracies(tmp_path, 5000, S, *noise)]
        assert [bar.get_height() for bar in axes.patches] == pytest.approx([np.mean(each) for each in values])
        assert [to_hex(bar.get_facecolor()) for bar in axes.patches] == 3 * [COLOURS["mono"], COLOURS["poly"]]
        whiskers = [
            (path.vertices[0, 1], path.vertices[-1, 1]) for each in axes.collections for path in each.get_paths()
        ]
        assert whiskers == [pytest.approx(t_interval(each)) for each in values if seeds > 1]
        assert max(map(max, values)) < axes.get_ylim()[1] <= 120
        assert [each.get_text() for each in axes.get_xticklabels()] == 3 * ["mono", "poly"]
        groups = [each.get_text() for each in axes.child_axes[0].get_xticklabels()]
        assert groups == ["clean", "90 % label noise", "Gaussian noise 0.4"]
    assert ("One seed: no intervals." in figure.get_supxlabel().replace("\n", " ")) == (seeds == 1)


def test_without_noise_there_are_clean_bars_only(made: Callable[..., Recorded]) -> None:
    figure = toy_plots.fig5b(made(rates=(0.0,), scales=(0.0,)))
    assert [each.get_text() for each in figure.axes[0].child_axes[0].get_xticklabels()] == ["clean"]


@pytest.mark.parametrize("seeds", [4, 1])
def test_lines_are_means_and_bands_intervals(made: Callable[..., Recorded], tmp_path: Path, seeds: int) -> None:
    figure = comparison_plots.by_noise_figure(made(seeds=seeds))
    panels = [(kind, S) for kind in ("label", "input") for S in SPARSITIES[1:]]
    for axes, (kind, S) in zip(figure.axes, panels, strict=True):
        assert axes.get_title("left") == f"S = {S:g}"
        noises, unit = (RATES, 100) if kind == "label" else (SCALES, 1)
        values = [accuracies(tmp_path, 5000, S, kind, noise) for noise in noises]
        for place, name in enumerate(("mono", "poly")):
            (line,) = [each for each in axes.lines if each.get_label() == name]
            assert list(line.get_xdata()) == pytest.approx([unit * noise for noise in noises])
            assert list(line.get_ydata()) == pytest.approx([np.mean(each[place]) for each in values])
            bands = [each for each in axes.collections if to_hex(each.get_facecolor()[0]) == COLOURS[name]]
            assert len(bands) == (seeds > 1)
            for band in bands:
                last = [y for x, y in band.get_paths()[0].vertices if x == pytest.approx(unit * noises[-1])]
                assert (min(last), max(last)) == pytest.approx(t_interval(values[-1][place]))
        assert {each.get_text() for each in axes.texts} == {"mono", "poly"}


def table(axes: Axes) -> dict[tuple[int, int], Text]:
    """By row and column, top first."""
    top_first = axes.yaxis_inverted()
    assert top_first
    return {(round(each.get_position()[1]), round(each.get_position()[0])): each for each in axes.texts}


@pytest.mark.parametrize("seeds", [3, 1])
def test_differences_are_in_points_bold_where_sure(made: Callable[..., Recorded], tmp_path: Path, seeds: int) -> None:
    label, noise, _ = comparison_plots.differences_figure(made(seeds=seeds)).axes
    bold: list[bool] = []
    for axes, kind, noises in ((label, "label", RATES), (noise, "input", SCALES)):
        cells = table(axes)
        rows = [(samples, S) for samples in (1000, 5000) for S in SPARSITIES[1:]]
        assert cells.keys() == set(itertools.product(range(len(rows)), range(len(noises))))
        colours = axes.collections[0].to_rgba(axes.collections[0].get_array())
        for (row, column), text in cells.items():
            mono, poly = accuracies(tmp_path, *rows[row], kind, noises[column])
            mean = float(np.mean(mono) - np.mean(poly))
            assert float(text.get_text().replace("−", "-")) == pytest.approx(mean, abs=0.0501)
            sure = seeds > 1 and stats.ttest_rel(mono, poly).pvalue < 0.05
            bold.append(sure)
            assert text.get_fontweight() == ("bold" if sure else "normal")
            red, _, blue, _ = colours[row, column]
            assert (red > blue) == (mean > 0)
    assert set(bold) == ({False, True} if seeds > 1 else {False})
    assert [each.get_text() for each in label.get_yticklabels()] == 2 * [f"S = {S:g}" for S in SPARSITIES[1:]]
    assert [each.get_text() for each in label.child_axes[0].get_yticklabels()] == ["N = 1,000", "N = 5,000"]
    assert [each.get_text() for each in noise.get_xticklabels()] == [f"{scale:g}" for scale in SCALES]


def test_what_only_one_training_set_saw_leaves_a_gap(made: Callable[..., Recorded], tmp_path: Path) -> None:
    made(train_samples=(100,), rates=(0.0, 0.5))
    label, *_ = comparison_plots.differences_figure(made(train_samples=(200,), rates=(0.0, 0.8))).axes
    gaps = {(row, column) for row in range(8) for column in range(3)} - table(label).keys()
    assert gaps == {(row, 2 if row < 4 else 1) for row in range(8)}


def test_dots_are_features_and_grey_those_not_represented(made: Callable[..., Recorded], tmp_path: Path) -> None:
    recorded = made(seeds=4)
    dots, shares = toy_plots.geometry_figure(recorded).axes
    assert [each.get_text() for each in dots.get_xticklabels()] == [f"{S:g}" for S in SPARSITIES]
    found = json.loads((tmp_path / "encoders.json").read_text())["results"]
    for place, S in enumerate(SPARSITIES):
        values, norms = (np.array(found[key][str(S)]) for key in ("dimensionality", "norms"))
        grey, coloured = dots.collections[2 * place : 2 * place + 2]
        for drawn, there in ((grey, norms <= 0.5), (coloured, norms > 0.5)):
            xs, ys = np.asarray(drawn.get_offsets()).reshape(-1, 2).T
            assert sorted(ys) == pytest.approx(sorted(values[there]))
            assert np.all(abs(xs - place) < 0.4)
        assert to_hex(coloured.get_facecolor()[0]) == COLOURS["mono" if S == 0 else "poly"]
    for label, of in (("represented", lambda S: np.array(found["norms"][S]) > 0.5), ("in pairs", found["paired"].get)):
        (line,) = [each for each in shares.lines if each.get_label() == label]
        assert list(line.get_ydata()) == pytest.approx([100 * np.mean(of(str(S))) for S in SPARSITIES])
    assert {each.get_text() for each in dots.texts} >= {"1: alone", "1/2: antipodal pair"}


def entries(axes: Axes) -> np.ndarray:
    """The matrix that an image shows, by the image's own pixels."""
    (image,) = axes.images
    pixels, (left, right, bottom, top) = np.asarray(image.get_array()), image.get_extent()
    n_rows, n_columns = round(bottom - top), round(right - left)
    blocks = pixels.reshape(n_rows, pixels.shape[0] // n_rows, n_columns, -1)
    assert np.all(blocks == blocks[:, :1, :, :1])
    return blocks[:, 0, :, 0]


@pytest.mark.parametrize(
    ("sparsities", "asked", "shown"),
    [(SPARSITIES, None, 0.9), (SPARSITIES, 0.5, 0.5), ((0.95, 0.0, 0.7, 0.2), None, 0.7), ((0.0, 0.97), None, 0.97)],
)
def test_figure_5a_shows_the_first_seeds_encoders(
    made: Callable[..., Recorded], tmp_path: Path, sparsities: tuple[float, ...], asked: float | None, shown: float
) -> None:
    figure = toy_plots.fig5a(made(seeds=2, sparsities=sparsities), asked)
    W_Ssmn = load_file(tmp_path / "encoders.safetensors")["W"]
    for (turned, gram, learned), S in zip((figure.axes[:3], figure.axes[3:6]), (0.0, shown), strict=True):
        W_mn = W_Ssmn[sparsities.index(S), 0]
        assert np.array_equal(entries(learned), W_mn)
        assert entries(gram) == pytest.approx(W_mn.T @ W_mn, abs=1e-5)
        assert entries(turned).T @ entries(turned) == pytest.approx(W_mn.T @ W_mn, abs=1e-5)
        assert np.sum(entries(turned) ** 4) > 1.2 * np.sum(W_mn.astype(float) ** 4)
        assert turned.texts[0].get_text().splitlines()[0].endswith(f"superposition, S = {S:g}:")
    assert "6 of 12 features represented, 0 in antipodal pairs" in figure.axes[0].texts[0].get_text()
    assert ("0 in" in figure.axes[3].texts[0].get_text()) == (shown < 0.2)
    norms = {image.norm for axes in figure.axes for image in axes.images}
    (norm,) = norms
    assert norm(0.0) == pytest.approx(0.5)
    assert norm.vmax == pytest.approx(max(np.abs(entries(axes)).max() for axes in figure.axes[:6]))


def test_figure_5a_refuses_a_sparsity_that_is_not_there(made: Callable[..., Recorded]) -> None:
    with pytest.raises(InputError, match=r"no encoder with superposition of S = 0\.7\. There are 0\.5, 0\.8, 0\.9"):
        toy_plots.fig5a(made(), 0.7)
