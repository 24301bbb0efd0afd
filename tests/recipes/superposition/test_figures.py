"""``monolora superposition figures``, and the command that selects the step; no figure has texts that overlap."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from monolora import cli
from monolora.recipes.superposition.figures import OF_RUN, OF_THEORY
from monolora.recipes.superposition.records import Records
from monolora.reporting.plots import save_figure
from tests.support.toy_records import make_records

SMALL = {"seeds": 1, "sparsities": (0.0, 0.5), "train_samples": (300,), "rates": (0.0, 0.6), "scales": (0.0, 0.2)}


def test_all_figures_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_records(tmp_path, 2, sparsities=(0.0, 0.5, 0.9), train_samples=(1000,))
    assert cli.main(["superposition", "figures", "--out", str(tmp_path), "--sparsity", "0.5"]) == 0
    files = {path.name for path in (tmp_path / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in (*OF_RUN, *OF_THEORY) for kind in ("png", "svg")}
    assert "With superposition, S = 0.5" in (tmp_path / "figures" / "fig5a.svg").read_text()
    shown = capsys.readouterr().out
    assert all(f"{name}: " in shown for name in (*OF_RUN, *OF_THEORY))


def test_without_a_run_the_theory_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["superposition", "figures", "--out", str(tmp_path / "new")]) == 0
    assert {path.stem for path in (tmp_path / "new" / "figures").iterdir()} == set(OF_THEORY)
    assert f"there is no run in {tmp_path / 'new'}: monolora superposition run --out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["figures", "--out", "{file}"], 2, "is a file. Name the folder of a run"),
        (["figures", "--sparsity", "0.7", "--out", "{run}"], 2, "0.7"),
        (["figures", "--sparsity", "x"], 2, "--sparsity"),
        (["figure"], 2, "Did you mean figures"),
        (["--out", "x"], 2, "Which step?"),
    ],
)
def test_bad_input(
    words: list[str], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    make_records(tmp_path / "run", 1, sparsities=(0.0, 0.9), train_samples=(100,))
    named = [word.format(file=tmp_path / "file", run=tmp_path / "run") for word in words]
    assert cli.main(["superposition", *named]) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["superposition"]) == 2
    assert cli.main(["superposition", "--help"]) == 0
    assert "monolora superposition verify" in capsys.readouterr().out


def shown_texts(figure: Figure) -> list[Text]:
    """All but the numbers at ticks, which matplotlib places."""
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [*axes.texts, axes._left_title, axes.xaxis.label, axes.yaxis.label]  # type: ignore[attr-defined]
        labels = [*axes.get_xticklabels(), *axes.get_yticklabels()]
        texts += [label for label in labels if label.get_text()[:1].isalpha()]
        texts += [label for child in axes.child_axes for label in (*child.get_xticklabels(), *child.get_yticklabels())]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


@pytest.mark.parametrize("draw", OF_RUN.values(), ids=OF_RUN)
@pytest.mark.parametrize("options", [{}, SMALL], ids=["five sparsities", "one"])
def test_no_text_overlaps_or_is_cut_off(
    write_records: Callable[..., Records], draw: Callable[[Records], Figure], options: dict[str, Any]
) -> None:
    figure = draw(write_records(**options))
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown_texts(figure)]
    for text, box in boxes:
        assert min(box.x0, box.y0) >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for (text, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other_box), (text, other)
    areas = [axes.get_tightbbox() for axes in figure.axes] + [text.get_window_extent() for text in figure.texts]
    assert not [pair for pair in itertools.combinations(areas, 2) if pair[0].overlaps(pair[1])]


@pytest.mark.parametrize("draw", OF_RUN.values(), ids=OF_RUN)
def test_the_same_records_give_the_same_files(
    write_records: Callable[..., Records], tmp_path: Path, draw: Callable[[Records], Figure]
) -> None:
    first, second = (
        [path.read_bytes() for path in save_figure(draw(write_records()), tmp_path / "figures", "figure")]
        for _ in range(2)
    )
    assert first == second
    assert b"<svg" in first[1]
