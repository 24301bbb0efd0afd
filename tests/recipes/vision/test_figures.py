"""Figures: what is drawn is what the records say, nothing overlaps, what cannot be drawn is said."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy import stats

from monolora.errors import InputError
from monolora.recipes.vision import figures
from monolora.recipes.vision.feature_plots import short_name
from monolora.recipes.vision.figure_data import COLOURS, Material
from monolora.recipes.vision.figures import FIGURES, main, run
from monolora.recipes.vision.images import ImageData
from monolora.recipes.vision.paper_comparison import TABLE1, compared
from monolora.recipes.vision.results import gather
from monolora.recipes.vision.settings import Settings
from monolora.reporting import plots
from monolora.reporting.plots import _apart
from tests.support.vision_records import RATES, SCALES, make_records

LONG = ("Staffordshire bullterrier, Staffordshire bull", "great white shark", "sweet_pepper")


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with matplotlib.rc_context(dict(plots.SETTINGS)):
        yield


@pytest.fixture
def made(settings: Settings, data: ImageData) -> Callable[..., Settings]:
    """``made(seeds=(0, 1))``: made-up records of the pictures; the settings of their figures."""

    def make(**given: Any) -> Settings:
        given = {"val_fingerprint": data.val.fingerprint, "data": {"dataset": "cifar100"}} | given
        make_records(Path(settings.common.out), **given)
        return settings

    return make


@pytest.fixture
def drawn(made: Callable[..., Settings], data: ImageData) -> Callable[..., Figure]:
    """``drawn("fig2", seeds=(0, 1))``: the figure of made-up records."""

    def draw(name: str, **given: Any) -> Figure:
        settings = made(**given)
        runs = gather(settings.common.out)
        return FIGURES[name](Material(runs, compared(runs, settings.data), lambda _: data.val))

    return draw


@pytest.fixture
def results(settings: Settings) -> Callable[[str], dict[str, Any]]:
    """What a record says: ``results("probe/ncl-0")``."""
    return lambda path: json.loads((Path(settings.common.out) / f"{path}.json").read_text())["results"]


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(figures, "FIGURES", {name: FIGURES[name] for name in names})


def line(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    (found,) = [each for each in axes.lines if each.get_label() == label]
    return list(found.get_xdata()), list(found.get_ydata())


def bars(axes: Axes) -> list[float]:
    return [patch.get_height() for patch in axes.patches]


def texts(axes: Axes) -> list[str]:
    return [each.get_text() for each in axes.texts]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_two_files(
    made: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    only(monkeypatch, name)
    settings = made(seeds=(0, 1), draws=2, shown=3)
    run(settings)
    folder = Path(settings.common.out) / "figures"
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.png", f"{name}.svg"]
    assert f"{folder / name}.svg" in capsys.readouterr().out
    with Image.open(folder / f"{name}.png") as image:
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert image.width > 600
        assert len(np.unique(np.asarray(image.convert("L")))) > 50
    assert "<svg" in (folder / f"{name}.svg").read_text()


@pytest.mark.parametrize("name", ["fig-table1", "fig1a"])
def test_the_same_records_give_the_same_files(
    made: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    only(monkeypatch, name)
    settings = made(shown=1)
    folder = Path(settings.common.out) / "figures"
    run(settings)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    run(settings)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


@pytest.mark.parametrize(
    ("name", "given"),
    [*((name, {"seeds": (0, 1)}) for name in FIGURES), ("fig1a", {"shown": 3}), ("fig2", {"draws": 1, "ood": ()})],
)
def test_no_text_overlaps_or_is_cut_off(
    drawn: Callable[..., Figure], data: ImageData, name: str, given: dict[str, Any]
) -> None:
    figure = drawn(name, **given)
    figure.draw_without_rendering()
    boxes = [(each.get_text(), each.get_window_extent()) for each in shown_texts(figure)]
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for (text, box), (other, beside) in itertools.combinations(boxes, 2):
        assert not box.overlaps(beside), (text, other)


def shown_texts(figure: Figure) -> list[Text]:
    """All but the numbers at ticks, which matplotlib sets."""
    found = list(figure.texts)
    for axes in figure.axes:
        found += [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        found += [each for each in axes.get_xticklabels() if each.get_text()[:1].isalpha()]
        found += [label for child in axes.child_axes for label in child.get_xticklabels()]
    return [each for each in found if each.get_visible() and each.get_text().strip()]


def test_table1_draws_means_bands_and_the_papers_lines(
    drawn: Callable[..., Figure], results: Callable[[str], dict[str, Any]]
) -> None:
    (axes,) = drawn("fig-table1", seeds=(0, 1, 2)).axes
    for name, label in (("simclr", "CL"), ("sae", "SAE"), ("ncl", "NCL")):
        means = [
            [fmean(results(f"probe/{name}-{seed}")["accuracy"]["ce"][str(rate)]) for seed in (0, 1, 2)]
            for rate in RATES
        ]
        xs, ys = line(axes, label)
        assert xs == pytest.approx([100 * rate for rate in RATES])
        assert ys == pytest.approx([100 * fmean(each) for each in means])
        (band,) = [
            each for each in axes.collections if matplotlib.colors.to_hex(each.get_facecolor()[0]) == COLOURS[name]
        ]
        low, high = stats.t.interval(0.95, 2, fmean(means[-1]), stats.sem(means[-1]))
        ends = [y for x, y in band.get_paths()[0].vertices if x == pytest.approx(90)]
        assert (min(ends), max(ends)) == pytest.approx((100 * low, 100 * high))
        dashed = [each for each in axes.lines if each.get_linestyle() == "--" and each.get_color() == COLOURS[name]]
        assert [list(each.get_ydata()) for each in dashed] == [list(TABLE1["CIFAR-100"][name])]
    assert texts(axes) == ["CL", "SAE", "NCL"]


def test_one_run_has_no_bands(drawn: Callable[..., Figure]) -> None:
    figure = drawn("fig-table1", draws=1)
    assert not figure.axes[0].collections
    assert "One run each: no interval." in figure.get_supxlabel()


@pytest.mark.parametrize("name", ["fig-table1", "fig2", "fig3", "fig3-curves", "fig6"])
def test_wide_intervals_do_not_stretch_the_axis(
    made: Callable[..., Settings], data: ImageData, settings: Settings, name: str
) -> None:
    made(draws=2, ood=())
    out = Path(settings.common.out)
    for path in [*(out / "probe").iterdir(), *(out / "finetune").iterdir()]:
        path.write_text(json.dumps(spread(json.loads(path.read_text()))))
    runs = gather(out)
    figure = FIGURES[name](Material(runs, compared(runs, settings.data), lambda _: data.val))
    accuracies = figure.axes[:-1] if name == "fig6" else figure.axes
    for axes in accuracies:
        assert axes.get_ylim() == pytest.approx((-2, 102))
    assert min(axes.get_ylim()[0] for axes in figure.axes) >= -104


def spread(found: Any) -> Any:
    """A record whose two runs, of all that was measured, got nothing and everything right."""
    if isinstance(found, dict):
        if "val_accuracy" in found:
            return found | {f"{kind}_accuracy": [float(found["draw"])] * 3 for kind in ("train", "val")}
        return {key: spread(value) for key, value in found.items()}
    if isinstance(found, list) and len(found) == 2 and all(isinstance(each, float) for each in found):
        return [0.0, 1.0]
    return [spread(each) for each in found] if isinstance(found, list) else found


def test_other_data_have_no_lines_of_the_paper(drawn: Callable[..., Figure]) -> None:
    figure = drawn("fig-table1", data={"dataset": "data/pets"})
    assert len(figure.axes[0].lines) == 3
    assert "The paper has no numbers for pets." in figure.get_supxlabel()


def test_figure_1a_shows_the_images_of_the_record(
    drawn: Callable[..., Figure], results: Callable[[str], dict[str, Any]], data: ImageData
) -> None:
    figure = drawn("fig1a", seeds=(3, 4), shown=5)
    assert len(figure.axes) == 3 * 4
    panels = iter(figure.axes)
    for name in ("simclr", "sae", "ncl"):
        for each in results(f"consistency/{name}-3")["random_dimensions"]:
            axes = next(panels)
            assert axes.get_title("left") == f"dimension {each['dimension']}, consistency {each['consistency']:.2f}"
            for image, place in zip(axes.images, each["images"], strict=True):
                assert np.array_equal(image.get_array(), data.val.pixels_N3SS[place].permute(1, 2, 0).numpy())
            classes = [data.val.classes[data.val.labels_N[place]] for place in each["images"]]
            assert texts(axes)[:5] == classes


def test_figure_1b_has_the_highest_rate_and_the_nearest_scale(
    made: Callable[..., Settings], results: Callable[[str], dict[str, Any]], data: ImageData
) -> None:
    settings = made()
    for path in (Path(settings.common.out) / "probe").iterdir():
        record = json.loads(path.read_text())
        del record["results"]["accuracy"]["ce"]["0.9"], record["results"]["input_noise"]["gaussian"]["0.6"]
        path.write_text(json.dumps(record))
    runs = gather(settings.common.out)
    (axes,) = FIGURES["fig1b"](Material(runs, compared(runs, settings.data), lambda _: data.val)).axes
    found = [results(f"probe/{name}-0") for name in ("simclr", "sae", "ncl")]
    expected = [each["accuracy"]["ce"]["0.0"] for each in found]
    expected += [each["accuracy"]["ce"]["0.8"] for each in found]
    expected += [each["input_noise"]["gaussian"]["0.4"] for each in found]
    assert bars(axes) == pytest.approx([100 * fmean(each) for each in expected])
    groups = [each.get_text().strip() for each in axes.child_axes[0].get_xticklabels()]
    assert groups == ["clean", "80 % label noise", "Gaussian noise 0.4"]
    assert [each.get_text() for each in axes.get_xticklabels()] == ["CL", "SAE", "NCL"] * 3


def test_figure_2_has_a_panel_a_kind(drawn: Callable[..., Figure], results: Callable[[str], dict[str, Any]]) -> None:
    uniform, gaussian, ood = drawn("fig2", ood=("sketch", "stylized")).axes
    for axes, kind in ((uniform, "uniform"), (gaussian, "gaussian")):
        for name, label in (("simclr", "CL"), ("ncl", "NCL")):
            found = results(f"probe/{name}-0")["input_noise"][kind]
            assert line(axes, label) == (
                list(SCALES), pytest.approx([100 * fmean(found[str(scale)]) for scale in SCALES])
            )  # fmt: skip
    expected = [
        100 * fmean(results(f"probe/{name}-0")["ood"][kind])
        for kind in ("sketch", "stylized")
        for name in ("simclr", "sae", "ncl")
    ]
    assert bars(ood) == pytest.approx(expected)


def test_figure_2_has_no_panel_for_what_was_not_tried(drawn: Callable[..., Figure]) -> None:
    assert [axes.get_title("left") for axes in drawn("fig2", ood=()).axes] == ["a  uniform noise", "b  Gaussian noise"]


def finetuned(found: dict[str, Any], objective: str, fraction: float, rate: float, kind: str) -> np.ndarray:
    """Draws by epochs, in %."""
    return 100 * np.array(
        [
            each[f"{kind}_accuracy"]
            for each in found["runs"]
            if (each["objective"], each["fraction"], each["noise_rate"]) == (objective, fraction, rate)
        ]
    )


def test_figure_3_has_the_last_epoch(drawn: Callable[..., Figure], results: Callable[[str], dict[str, Any]]) -> None:
    train, val, noisy = drawn("fig3", seeds=(0, 1)).axes
    found = [results(f"finetune/{seed}") for seed in (0, 1)]
    for objective in ("ce", "nce"):

        def last(fraction: float, rate: float, kind: str, objective: str = objective) -> float:
            return fmean(finetuned(each, objective, fraction, rate, kind)[:, -1].mean() for each in found)

        shares, rates = (0.1, 0.2, 0.5, 1.0), (0.0, 0.2, 0.4, 0.6, 0.8)
        for axes, kind in ((train, "train"), (val, "val")):
            xs, ys = line(axes, objective.upper())
            assert xs == pytest.approx([10, 20, 50, 100])
            assert ys == pytest.approx([last(share, 0.0, kind) for share in shares])
        assert line(noisy, objective.upper())[1] == pytest.approx([last(1.0, rate, "val") for rate in rates])


def test_figure_3_curves_have_every_epoch(
    drawn: Callable[..., Figure], results: Callable[[str], dict[str, Any]]
) -> None:
    figure = drawn("fig3-curves")
    conditions = {"10 % of the images": (0.1, 0.0), "80 % wrong labels": (1.0, 0.8)}
    assert len(figure.axes) == 8
    for axes in figure.axes:
        if axes.get_title("left") in conditions:
            condition = conditions.pop(axes.get_title("left"))
            validation, training = (
                finetuned(results("finetune/0"), "nce", *condition, kind).mean(0) for kind in ("val", "train")
            )
            assert line(axes, "NCE") == (list(range(1, 13)), pytest.approx(validation))
            dashed = [
                each for each in axes.lines if each.get_color() == COLOURS["ncl"] and each.get_linestyle() == "--"
            ]
            assert [list(each.get_ydata()) for each in dashed] == [pytest.approx(training)]
    assert not conditions


def test_figure_4ab_names_class_accuracy_and_dimension(
    drawn: Callable[..., Figure], results: Callable[[str], dict[str, Any]], data: ImageData
) -> None:
    panels = drawn("fig4ab").axes
    ncl = results("consistency/ncl-0")
    for axes, key in zip(panels[-2:], ("worst_class", "best_class"), strict=True):
        each = ncl[key]
        assert axes.get_title("left") == (
            f"{each['class']}: accuracy {100 * each['accuracy']:.0f} %\n"
            f"dimension {each['dimension']}, consistency {each['consistency']:.2f}"
        )
        assert np.array_equal(
            axes.images[0].get_array(), data.val.pixels_N3SS[each["images"][0]].permute(1, 2, 0).numpy()
        )


def test_figure_4c_has_right_and_wrong(drawn: Callable[..., Figure], results: Callable[[str], dict[str, Any]]) -> None:
    (axes,) = drawn("fig4c", seeds=(0, 1)).axes
    expected = [
        fmean(fmean(results(f"consistency/{name}-{seed}")[key]) for seed in (0, 1))
        for name in ("simclr", "sae", "ncl")
        for key in ("right", "wrong")
    ]
    assert bars(axes) == pytest.approx(expected)
    assert [each.get_text() for each in axes.get_xticklabels()] == ["right", "wrong"] * 3


def test_figure_6_has_both_losses_and_their_difference(
    drawn: Callable[..., Figure], results: Callable[[str], dict[str, Any]]
) -> None:
    *panels, less = drawn("fig6", seeds=(0, 1)).axes
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


def test_what_is_not_there_is_said_and_the_rest_is_drawn(
    made: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch, "fig1b", "fig3", "fig4c", "fig6")
    settings = made()
    out = Path(settings.common.out)
    (out / "finetune" / "0.json").unlink()
    for path in (out / "probe").iterdir():
        record = json.loads(path.read_text())
        del record["results"]["accuracy"]["sce"]
        path.write_text(json.dumps(record))
    for path in (out / "consistency").iterdir():
        path.unlink()
    run(settings)
    lines = capsys.readouterr().out.splitlines()
    assert [each.split(":")[0] for each in lines] == ["fig1b", "fig3", "fig4c", "fig6"]
    assert lines[1:] == [
        "fig3: not drawn: no encoder has been finetuned; run monolora vision finetune",
        "fig4c: not drawn: semantic consistency has not been measured; run monolora vision consistency",
        "fig6: not drawn: the probes have not both losses; run monolora vision probe --losses ce,sce",
    ]


def test_images_of_other_data_are_not_shown(
    made: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch, "fig1a", "fig4c")
    run(made(val_fingerprint="another"))
    assert "fig1a: not drawn: consistency was measured on other images than" in capsys.readouterr().out


def test_images_that_are_gone_are_said(
    made: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    only(monkeypatch, "fig4ab", "fig4c")
    (tmp_path / "gone" / "train").mkdir(parents=True)
    settings = made()
    run(replace(settings, data=replace(settings.data, dataset=str(tmp_path / "gone"))))
    assert "fig4ab: not drawn: its images are not there: " in capsys.readouterr().out


def test_nothing_to_draw_is_refused(
    made: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    only(monkeypatch, "fig3")
    settings = made()
    (Path(settings.common.out) / "finetune" / "0.json").unlink()
    with pytest.raises(InputError, match=r"has nothing to draw yet\. Run the steps first"):
        run(settings)
    with pytest.raises(InputError, match="has no results"):
        main(["--out", str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),
        ([0.52, 0.5], [0.56, 0.46]),
        ([0.5, 0.5, 0.5], [0.4, 0.5, 0.6]),
        ([0.30, 0.38, 0.44], [0.273333, 0.373333, 0.473333]),
    ],
)
def test_labels_keep_their_distance_and_order(wanted: list[float], found: list[float]) -> None:
    assert _apart(np.array(wanted), 0.1) == pytest.approx(found, abs=1e-6)


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


def test_long_names_do_not_meet(made: Callable[..., Settings], data: ImageData) -> None:
    settings = made(shown=8)
    runs = gather(settings.common.out)
    images = data.val._replace(classes=LONG, pixels_N3SS=torch.zeros(18, 3, 200, 200, dtype=torch.uint8))
    figure = FIGURES["fig4ab"](Material(runs, compared(runs, settings.data), lambda _: images))
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.images[0].get_array().shape == (96, 96, 3)
        boxes = [each.get_window_extent() for each in axes.texts]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        pictures = [each.get_window_extent() for each in axes.images]
        assert not any(text.overlaps(picture) for text in boxes for picture in pictures)
