"""``monolora vision figures``: its files, what it does without data; no figure has texts that overlap."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from monolora.errors import InputError
from monolora.recipes.vision import figures
from monolora.recipes.vision.figures import FIGURES, main, run
from monolora.recipes.vision.settings import Settings


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(figures, "FIGURES", {name: FIGURES[name] for name in names})


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_two_files(
    write_records: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    only(monkeypatch, name)
    settings = write_records(seeds=(0, 1), draws=2, shown=3)
    run(settings)
    folder = Path(settings.common.out) / "figures"
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.png", f"{name}.svg"]
    assert f"{folder / name}.svg" in capsys.readouterr().out
    with Image.open(folder / f"{name}.png") as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 50
    assert "<svg" in (folder / f"{name}.svg").read_text()


@pytest.mark.parametrize("name", ["fig-table1", "fig1a"])
def test_the_same_records_give_the_same_files(
    write_records: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    only(monkeypatch, name)
    settings = write_records(shown=1)
    folder = Path(settings.common.out) / "figures"
    run(settings)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    run(settings)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {"seeds": (0, 1)}) for name in FIGURES), ("fig1a", {"shown": 3}), ("fig2", {"draws": 1, "ood": ()})],
)
def test_no_text_overlaps_or_is_cut_off(figure_of: Callable[..., Figure], name: str, options: dict[str, Any]) -> None:
    figure = figure_of(name, **options)
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown_texts(figure)]
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for (text, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other_box), (text, other)


def shown_texts(figure: Figure) -> list[Text]:
    """All but the numbers at ticks, which matplotlib places."""
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        texts += [label for label in axes.get_xticklabels() if label.get_text()[:1].isalpha()]
        texts += [label for child in axes.child_axes for label in child.get_xticklabels()]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


@pytest.mark.parametrize("name", ["fig-table1", "fig2", "fig3", "fig3-curves", "fig6"])
def test_wide_intervals_do_not_stretch_the_axis(
    write_records: Callable[..., Settings], draw: Callable[..., Figure], settings: Settings, name: str
) -> None:
    write_records(draws=2, ood=())
    out = Path(settings.common.out)
    for path in [*(out / "probe").iterdir(), *(out / "finetune").iterdir()]:
        path.write_text(json.dumps(spread(json.loads(path.read_text()))))
    figure = draw(name)
    accuracies = figure.axes[:-1] if name == "fig6" else figure.axes
    for axes in accuracies:
        assert axes.get_ylim() == pytest.approx((0 if name in ("fig-table1", "fig2") else -2, 102))
    assert min(axes.get_ylim()[0] for axes in figure.axes) >= -104


def spread(value: Any) -> Any:
    """A record of two runs with all accuracies 0 in one and 1 in the other."""
    if isinstance(value, dict):
        if "val_accuracy" in value:
            return value | {f"{kind}_accuracy": [float(value["draw"])] * 3 for kind in ("train", "val")}
        return {key: spread(item) for key, item in value.items()}
    if isinstance(value, list) and len(value) == 2 and all(isinstance(item, float) for item in value):
        return [0.0, 1.0]
    return [spread(item) for item in value] if isinstance(value, list) else value


def test_what_is_not_there_is_said_and_the_rest_is_draw(
    write_records: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch, "fig1b", "fig3", "fig4c", "fig6")
    settings = write_records()
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
    assert [line.split(":")[0] for line in lines] == ["fig1b", "fig3", "fig4c", "fig6"]
    assert lines[1:] == [
        "fig3: not drawn: no encoder has been finetuned; run monolora vision finetune",
        "fig4c: not drawn: semantic consistency has not been measured; run monolora vision consistency",
        "fig6: not drawn: the probes have not both losses; run monolora vision probe --losses ce,sce",
    ]


def test_images_of_other_data_are_not_shown(
    write_records: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch, "fig1a", "fig4c")
    run(write_records(val_fingerprint="another"))
    assert "fig1a: not drawn: consistency was measured on other images than" in capsys.readouterr().out


def test_unavailable_images_are_reported(
    write_records: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    only(monkeypatch, "fig4ab", "fig4c")
    (tmp_path / "gone" / "train").mkdir(parents=True)
    settings = write_records()
    run(replace(settings, data=replace(settings.data, dataset=str(tmp_path / "gone"))))
    assert "fig4ab: not drawn: its images are unavailable: " in capsys.readouterr().out


def test_nothing_to_draw_is_refused(
    write_records: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    only(monkeypatch, "fig3")
    settings = write_records()
    (Path(settings.common.out) / "finetune" / "0.json").unlink()
    with pytest.raises(InputError, match=r"has nothing to draw yet\. Run the steps first"):
        run(settings)
    with pytest.raises(InputError, match="has no results"):
        main(["--out", str(tmp_path / "nowhere")])
