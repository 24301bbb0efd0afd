"""The comparison of adapters against pandas, what it refuses and what it writes."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monolora.errors import InputError, SaveError
from monolora.eval.explain.compare import compare, write_comparison
from monolora.eval.explain.compare_records import Comparison, Row, read
from monolora.eval.explain.compare_report import cumulative, panels, show
from monolora.stats import holm
from monolora.terminal import Terminal
from tests.support.explained_folders import explained_folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    explained_folder(tmp_path / "lora", 1, is_signed=True)
    explained_folder(tmp_path / "mono", 2)
    return {"lora": tmp_path / "lora", "mono": tmp_path / "mono"}


def _rows(comparison: Comparison, dataset: int = 0) -> dict[str, Row]:
    return {row.id: row for row in comparison.datasets[dataset].rows}


def test_means_are_those_of_pandas(folders: dict[str, Path]) -> None:
    rows = _rows(compare(folders, resamples=100))
    for name, folder in folders.items():
        frame = pd.read_parquet(folder / "features.parquet")
        sst2 = frame[[column for column in frame if column.startswith("sst2.")]].rename(columns=lambda c: c[5:])
        strongest = [sst2[column] for column in ("strongest_consistency", "lowest_consistency") if column in sst2]
        expected = {
            "sparsity": 100 - 100 * sst2.firing_rate.mean(),
            "dead": 100 * (sst2.firing_rate == 0).mean(),
            "always_on": 100 * (sst2.firing_rate == 1).mean(),
            "consistency": 100 * sst2.consistency.mean(),
            "strongest_consistency": 100 * pd.concat(strongest).mean(),
            "information": sst2.information.mean(),
            "informative": 100 * (sst2.information_q.dropna() < 0.05).mean(),
            "effect": 100 * sst2.effect.mean(),
            "largest_effect": 100 * sst2.effect.max(),
            "peak": sst2.effect.max() / sst2.effect.mean(),
        }
        assert {key: row.means[name].value for key, row in rows.items()} == pytest.approx(expected, rel=1e-12)
        assert rows["strongest_consistency"].means[name].features == pd.concat(strongest).notna().sum()
        assert rows["strongest_consistency"].means[name].total == len(pd.concat(strongest))
    assert {key for key, row in rows.items() if row.chance is not None} == {"strongest_consistency"}
    assert rows["strongest_consistency"].chance == pytest.approx(58)


def test_without_labels_nothing_is_said_of_them(folders: dict[str, Path]) -> None:
    rows = _rows(compare(folders, resamples=100), dataset=1)
    assert list(rows) == ["sparsity", "dead", "always_on", "effect", "largest_effect", "peak"]


def test_every_pair_is_compared_and_all_tests_are_one_family(folders: dict[str, Path], tmp_path: Path) -> None:
    explained_folder(tmp_path / "third", 3)
    comparison = compare({**folders, "third": tmp_path / "third"}, resamples=200)
    differences = [each for dataset in comparison.datasets for row in dataset.rows for each in row.differences]
    pairs = {(each.adapter, each.against) for each in differences}
    assert pairs == {("mono", "lora"), ("third", "lora"), ("third", "mono")}
    assert len(differences) == comparison.tests == 3 * (8 + 4)
    assert [each.p_holm for each in differences] == holm([each.p for each in differences])
    for dataset in comparison.datasets:
        for row in dataset.rows:
            for each in row.differences:
                assert each.value == pytest.approx(row.means[each.adapter].value - row.means[each.against].value)


def test_the_same_seed_gives_the_same_comparison(folders: dict[str, Path], tmp_path: Path) -> None:
    texts = []
    for seed in (0, 0, 1):
        write_comparison(tmp_path / "out", compare(folders, resamples=100, seed=seed))
        texts.append((tmp_path / "out" / "comparison.json").read_text())
    assert texts[0] == texts[1] != texts[2]
    assert json.loads(texts[0])["datasets"][0]["measures"][0]["id"] == "sparsity"


def test_distributions_are_cumulative_over_units(folders: dict[str, Path]) -> None:
    shown = {panel.title: panel for panel in panels(compare(folders, resamples=10).datasets[0])}
    assert list(shown) == [
        "sparsity, %",
        "consistency, live units, %",
        "consistency, strongest texts, %",
        "information on the label, bits",
        "mean effect, %",
    ]
    for panel in shown.values():
        assert [curve.adapter for curve in panel.curves] == ["lora", "mono"]
        assert (panel.ticks[0].at, panel.ticks[-1].at) == (0, 100)
        for curve in panel.curves:
            corners = np.array([[float(each) for each in point.split(",")] for point in curve.points.split()])
            assert (np.diff(corners, axis=0) * [1, -1] >= 0).all()  # to the right and up
            assert corners[-1].tolist() == [100, 0]
    lora = shown["sparsity, %"].curves[0]
    assert lora.points == "0,100 0,100 0,0 100,0"  # all of its units are at 0
    assert cumulative(np.array([3.0, 1.0, 1.0, 7.0]), np.array([0, 1, 2, 7])).tolist() == [0, 0.5, 0.5, 1]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_needs_nothing_else_and_escapes_names(folders: dict[str, Path], tmp_path: Path) -> None:
    comparison = compare({"<b>lora": folders["lora"], "mono": folders["mono"]}, resamples=50)
    write_comparison(tmp_path / "new" / "out", comparison)
    text = (tmp_path / "new" / "out" / "comparison.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert "<b>" not in text
    assert "&lt;b&gt;lora" in text
    assert not [tag for tag, attributes in page.tags if tag in ("script", "link", "img") or "src" in attributes]
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert sum(tag == "figure" for tag, _ in page.tags) == 5 + 2
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["comparison.html", "comparison.json"]


@pytest.mark.parametrize("width", [60, 100])
def test_the_terminal_shows_every_measure(folders: dict[str, Path], width: int) -> None:
    console = Terminal(file=io.StringIO(), width=width)
    comparison = compare({"lora\x1b[31m": folders["lora"], "mono": folders["mono"]}, resamples=50)
    show(comparison, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    words = " ".join(text.split())
    for shown in ("sst2: 872 texts, 20,000 tokens", "chance", "dead units", "p (Holm)", "not other texts"):
        assert shown in words
    sparsity = _rows(comparison)["sparsity"].means["mono"]
    assert f"{sparsity.value:.1f}" in words


def test_units_that_are_left_out_of_a_mean_are_counted(folders: dict[str, Path], tmp_path: Path) -> None:
    comparison = compare(folders, resamples=10)
    mean = _rows(comparison)["strongest_consistency"].means["mono"]
    assert 0 < mean.features < mean.total == 60
    console = Terminal(file=io.StringIO(), width=100)
    show(comparison, console)
    write_comparison(tmp_path / "out", comparison)
    texts = (console.file.getvalue(), (tmp_path / "out" / "comparison.html").read_text())  # type: ignore[attr-defined]
    for text in texts:
        assert set(re.findall(r"n = .* of \d+", text)) == {f"n = {mean.features} of 60"}  # of all units of lora
        words = " ".join(text.split())
        assert "one that excites fewer than 20 texts none of the strongest texts" in words


def test_nothing_is_said_of_units_left_out_where_none_is(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        explained_folder(tmp_path / name, seed, is_signed=True)
    console = Terminal(file=io.StringIO(), width=100)
    show(compare({name: tmp_path / name for name in ("a", "b")}, resamples=10), console)
    assert "n = " not in console.file.getvalue()  # type: ignore[attr-defined]
    assert "n is how many" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_texts_are_not_read(folders: dict[str, Path]) -> None:
    columns = read("lora", folders["lora"]).units.columns
    assert {"module", "sst2.lowest_consistency", "plain.effect"} <= set(columns)
    assert not {"sst2.mean", "plain.max"} & set(columns)


def test_what_only_some_have_is_left_out_and_said(folders: dict[str, Path], tmp_path: Path) -> None:
    run = json.loads((folders["mono"] / "run.json").read_text())
    run["datasets"][1]["fingerprint"] = "others"
    (folders["mono"] / "run.json").write_text(json.dumps(run | {"model": "another"}))
    comparison = compare(folders, resamples=10)
    assert [dataset.name for dataset in comparison.datasets] == ["sst2"]
    assert comparison.left_out == ["plain"]
    console = Terminal(file=io.StringIO(), width=100)
    show(comparison, console)
    words = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "Left out, as not all adapters have them: plain." in words
    assert "different base models" in words


def test_refuses_folders_that_cannot_be_compared(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs two adapters"):
        compare({"lora": folders["lora"]})
    with pytest.raises(InputError, match=r"mono: .*nowhere has no features.parquet"):
        compare({**folders, "mono": tmp_path / "nowhere"})
    explained_folder(tmp_path / "other", datasets=[])
    with pytest.raises(InputError, match=r"no data set in common.*lora has sst2, plain; other has none"):
        compare({"lora": folders["lora"], "other": tmp_path / "other"})
    run = json.loads((folders["mono"] / "run.json").read_text())
    run["datasets"][0]["strongest"] = 50
    (folders["mono"] / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match="different numbers of strongest texts: lora 20, mono 50"):
        compare(folders)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", b"{", "cannot be read"),
        ("run.json", b"[]", "is no record of monolora explain"),
        (
            "run.json",
            b'{"adapter": "", "method": "", "model": "", "datasets": [{"name": "sst2"}]}',
            "is no record of monolora explain",
        ),
        ("features.parquet", b"PAR1", "cannot be read"),
    ],
)
def test_refuses_broken_files(folders: dict[str, Path], file: str, content: bytes, message: str) -> None:
    (folders["mono"] / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        compare(folders)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "message"), [("module", "has no units"), ("sst2.information", r"has no column sst2\.information")]
)
def test_refuses_features_without_a_column(folders: dict[str, Path], column: str, message: str) -> None:
    file = folders["mono"] / "features.parquet"
    pd.read_parquet(file).drop(columns=column).to_parquet(file)
    with pytest.raises(InputError, match=message):
        compare(folders)


def test_a_folder_that_cannot_be_written_is_said(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="Cannot save into"):
        write_comparison(tmp_path / "file", compare(folders, resamples=10))
