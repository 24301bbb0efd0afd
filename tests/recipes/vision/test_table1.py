"""Table 1: its numbers from the records by another way, the paper's from its text, and the three files alike."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from monolora.errors import InputError
from monolora.recipes.vision import paper_comparison
from monolora.recipes.vision.paper_comparison import compare
from monolora.recipes.vision.results import read_records
from monolora.recipes.vision.settings import Common, Data, Settings
from monolora.recipes.vision.table1 import main, run
from monolora.reporting.tables import escaped
from tests.support.vision_records import RATES, make_records

CIFAR = {"dataset": "uoft-cs/cifar100", "per_class": None}
# The paper's text, to the letter; its lines of differences belong to the one above.
PAPER = """
Poly (CL) | 54.5 | 53.4 | 52.8 | 52.1 | 51.2 | 49.9 | 49.5 | 48.0 | 45.0 | 35.7 | |
Mono (SAE) | 54.4 | 53.9 | 53.4 | 52.9 | 51.9 | 51.3 | 50.5 | 49.7 | 47.1 | 39.1 | |
-0.1 | +0.5 | +0.6 | +0.8 | +0.7 | +1.4 | +1.0 | +1.7 | +2.1 | +3.4 | ||
Mono (NCL) | 52.8 | 53.9 | 53.5 | 52.6 | 52.6 | 52.3 | 51.4 | 49.5 | 48.0 | 44.9 | |
CIFAR-100 | -1.7 | +0.5 | +0.7 | +0.5 | +1.4 | +2.4 | +1.9 | +1.5 | +3.0 | +9.2 | |
Poly (CL) | 66.8 | 63.1 | 61.8 | 60.1 | 58.8 | 56.4 | 54.9 | 53.1 | 48.9 | 34.4 | |
Mono (SAE) | 66.2 | 65.3 | 62.3 | 60.5 | 59.8 | 59.7 | 58.5 | 55.9 | 54.3 | 45.9 | |
-0.4 | +2.2 | +0.5 | +0.4 | +1.0 | +3.3 | +3.6 | +2.8 | +5.4 | +11.5 | ||
Mono (NCL) | 66.7 | 65.4 | 64.4 | 63.9 | 62.4 | 62.3 | 60.6 | 59.8 | 57.6 | 48.1 | |
ImageNet-100 | -0.1 | +2.3 | +2.6 | +3.8 | +3.6 | +5.9 | +5.7 | +6.7 | +8.7 | +13.7 |
"""


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Settings]:
    """``make(seeds=(0, 1))``: made-up records; the settings of their table."""

    def write(dataset: str = "uoft-cs/cifar100", **options: Any) -> Settings:
        make_records(tmp_path, **options)
        return Settings(common=Common(out=str(tmp_path)), data=Data(dataset=dataset))

    return write


def accuracies(out: Path, name: str, seed: int, loss: str, rate: float) -> list[float]:
    return json.loads((out / "probe" / f"{name}-{seed}.json").read_text())["results"]["accuracy"][loss][str(rate)]


def csv_rows(out: Path) -> dict[tuple[str, str, float], dict[str, str]]:
    with (out / "table1.csv").open() as file:
        return {(row["representation"], row["loss"], float(row["noise_rate"])): row for row in csv.DictReader(file)}


def test_the_papers_numbers_are_those_of_its_text() -> None:
    lines = [re.findall(r"[-+]?\d+\.\d", line) for line in PAPER.strip().splitlines()]
    for half, start in (("CIFAR-100", 0), ("ImageNet-100", 5)):
        for name, line in (("simclr", 0), ("sae", 1), ("ncl", 3)):
            expected = list(map(float, lines[start + line]))
            assert [paper_comparison.accuracy(half, name, rate) for rate in RATES] == expected
        for name, line in (("sae", 2), ("ncl", 4)):
            expected = list(map(float, lines[start + line]))
            if (half, name) == ("ImageNet-100", "sae"):
                expected[0] = -0.6  # the paper prints -0.4 for 66.2 - 66.8
            assert [paper_comparison.gain(half, name, rate) for rate in RATES] == expected


def test_the_paper_has_no_numbers_for_other_rates_and_data() -> None:
    assert paper_comparison.accuracy("CIFAR-100", "ncl", 0.95) is None
    assert paper_comparison.accuracy(None, "ncl", 0.9) is None
    assert paper_comparison.gain(None, "ncl", 0.9) is None


@pytest.mark.parametrize(
    ("dataset", "half"),
    [
        ("uoft-cs/cifar100", "CIFAR-100"),
        ("data/CIFAR-100/", "CIFAR-100"),
        ("clane9/imagenet-100", "ImageNet-100"),
        ("uoft-cs/cifar10", None),
        ("imagenet/pets", None),
    ],
)
def test_the_half_is_that_of_the_data_set(dataset: str, half: str | None) -> None:
    assert paper_comparison.half_of(dataset) == half


def test_several_encoders_count_once_each(make: Callable[..., Settings], tmp_path: Path) -> None:
    run(make(seeds=(0, 1, 5), draws=4))
    rows = csv_rows(tmp_path)
    for loss in ("ce", "sce"):
        for rate in (0.0, 0.4, 0.9):
            of = {
                name: np.array([accuracies(tmp_path, name, seed, loss, rate) for seed in (0, 1, 5)]).mean(1) * 100
                for name in ("simclr", "sae", "ncl")
            }
            for key, values in {
                **of,
                "sae-simclr": of["sae"] - of["simclr"],
                "ncl-simclr": of["ncl"] - of["simclr"],
            }.items():
                row = rows[key, loss, rate]
                low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
                assert (float(row["mean"]), float(row["low"]), float(row["high"])) == pytest.approx(
                    (values.mean(), low, high)
                )
                assert row["n"] == "3"
    assert len(rows) == 2 * 5 * len(RATES)


def test_one_encoder_has_intervals_over_draws_and_says_so(
    make: Callable[..., Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make(seeds=(4,), draws=5))
    mono, poly = (np.array(accuracies(tmp_path, name, 4, "ce", 0.9)) for name in ("ncl", "simclr"))
    row = csv_rows(tmp_path)["ncl-simclr", "ce", 0.9]
    expected = stats.ttest_rel(mono, poly).confidence_interval(0.95)
    assert (float(row["low"]), float(row["high"])) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert row["n"] == "5"
    assert (
        "over 5 draws of wrong labels on one encoder: they say nothing about other encoders" in capsys.readouterr().out
    )


def test_one_run_has_no_interval_anywhere(make: Callable[..., Settings], tmp_path: Path) -> None:
    run(make(draws=1))
    rows = csv_rows(tmp_path)
    assert {(row["low"], row["high"], row["n"]) for row in rows.values()} == {("", "", "1")}
    text = (tmp_path / "table1.md").read_text()
    assert "±" not in text
    assert "nan" not in text.lower()
    assert "One run each: no interval." in text


def markdown_cells(text: str) -> list[list[str]]:
    """The rows of the first table, without its head."""
    table = text.split("\n## ")[1]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines() if "|" in line][2:]


def latex_cells(text: str) -> list[list[str]]:
    """The rows of the first table, each with the intervals that stand below it."""
    table = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    rows: list[list[str]] = []
    for line in table.strip().splitlines():
        cells = line.removesuffix(r" \\").replace(r"$\pm$", " ± ").replace("$-$", "−").split(" & ")
        if cells[0] == "{}":  # intervals
            halves = [re.sub(r"[{}]|\\scriptsize ", "", cell) for cell in cells]
            rows[-1] = [value + half for value, half in zip(rows[-1], halves, strict=True)]
        else:
            rows.append(cells)
    return rows


def test_the_three_files_agree(make: Callable[..., Settings], tmp_path: Path) -> None:
    run(make(seeds=(0, 1), draws=3, data=CIFAR))
    cells = markdown_cells((tmp_path / "table1.md").read_text())
    assert latex_cells((tmp_path / "table1.tex").read_text()) == cells
    rows = csv_rows(tmp_path)
    keys = ["simclr", "sae", "sae-simclr", "ncl", "ncl-simclr"]
    assert [row[0] for row in cells[::2]] == ["Poly (CL)", "Mono (SAE)", "SAE − CL", "Mono (NCL)", "NCL − CL"]
    assert {row[0] for row in cells[1::2]} == {"paper"}
    for key, ours, paper in zip(keys, cells[::2], cells[1::2], strict=True):
        for rate, own_cell, paper_cell in zip(RATES, ours[1:], paper[1:], strict=True):
            row = rows[key, "ce", rate]
            mean, half = own_cell.replace("−", "-").split(" ± ")
            assert float(mean) == pytest.approx(float(row["mean"]), abs=0.0501)
            assert float(half) == pytest.approx(float(row["high"]) - float(row["mean"]), abs=0.0501)
            assert float(paper_cell.replace("−", "-")) == float(row["paper"])
            assert (own_cell[0] in "+−0") == ("-" in key)


def test_a_missing_representation_has_no_rows(make: Callable[..., Settings], tmp_path: Path) -> None:
    settings = make()
    (tmp_path / "probe" / "simclr-0.json").unlink()
    run(settings)
    assert {key for key, _, _ in csv_rows(tmp_path)} == {"sae", "ncl"}


def test_a_missing_rate_is_a_dash(make: Callable[..., Settings], tmp_path: Path) -> None:
    settings = make()
    path = tmp_path / "probe" / "sae-0.json"
    record = json.loads(path.read_text())
    del record["results"]["accuracy"]["ce"]["0.5"]
    path.write_text(json.dumps(record))
    run(settings)
    sae = next(row for row in markdown_cells((tmp_path / "table1.md").read_text()) if row[0] == "Mono (SAE)")
    assert [index for index, cell in enumerate(sae) if cell == "–"] == [6]
    assert csv_rows(tmp_path)["sae", "ce", 0.5]["mean"] == ""


HUNDRED = [f"class {index}" for index in range(100)]


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"data": CIFAR, "classes": HUNDRED}, "the paper's Table 1, CIFAR-100."),
        (
            {"data": CIFAR | {"per_class": 50}, "classes": HUNDRED[:10], "epochs": 20},
            "the paper's Table 1, CIFAR-100. Not comparable: 10 classes (paper: 100); 50 training images a class "
            "(paper: all); pretraining with epochs 20 (paper: 200).",
        ),
        ({"data": {"dataset": "data/pets"}}, "The paper has no numbers for pets."),
        (
            {"data": {"dataset": "ilsvrc/imagenet-1k"}, "classes": HUNDRED},
            "the paper's Table 1, ImageNet-100. Not comparable: its classes may be others than the paper's.",
        ),
        ({"classes": HUNDRED}, "the paper's Table 1, CIFAR-100, if the runs are of --dataset's images."),
    ],
)
def test_differences_from_the_papers_settings_are_noted(
    make: Callable[..., Settings], tmp_path: Path, options: dict[str, Any], note: str
) -> None:
    settings = make(**options)
    comparison = compare(read_records(tmp_path), settings.data)
    assert comparison.note == note
    run(settings)
    assert note in (tmp_path / "table1.md").read_text()
    assert (csv_rows(tmp_path)["ncl", "ce", 0.9]["paper"] == "") == (comparison.half is None)


def test_an_autoencoder_of_another_k_is_noted(make: Callable[..., Settings], tmp_path: Path) -> None:
    settings = make(classes=HUNDRED, data=CIFAR)
    path = tmp_path / "sae-0" / "sae.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": {"k": 16}}))
    assert compare(read_records(tmp_path), settings.data).note.endswith("autoencoder with k 16 (paper: 256).")


def test_names_are_escaped_for_latex(make: Callable[..., Settings], tmp_path: Path) -> None:
    run(make(data={"dataset": r"data/my_pets & 50%"}))
    text = (tmp_path / "table1.tex").read_text()
    assert r"my\_pets \& 50\%" in text
    assert not re.search(r"(?<!\\)[%#]", text.split("\n", 1)[1])
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_latex_escapes_to_the_letter() -> None:
    assert escaped(r"a_b & 5% ± −1 \x {y}") == r"a\_b \& 5\% $\pm$ $-$1 \textbackslash{}x \{y\}"


def test_the_program_shows_the_table(
    make: Callable[..., Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make()
    assert main(["--out", str(tmp_path)]) == 0
    assert (tmp_path / "table1.md").read_text() in capsys.readouterr().out


def test_without_probes_there_is_no_table(make: Callable[..., Settings], tmp_path: Path) -> None:
    settings = make()
    for path in (tmp_path / "probe").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"has no probes\. Run them first: monolora vision probe"):
        run(settings)
