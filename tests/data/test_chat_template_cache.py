"""Training rows on disk: the same rows, whose tokens a later run finds again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest

from monolora.data import chat_template
from tests.support import forks

ROWS = [{"prompt": f"Question {number}", "completion": "yes"} for number in range(20)]


@pytest.fixture
def rows() -> datasets.Dataset:
    return datasets.Dataset.from_list(ROWS)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path / chat_template.FOLDER


@pytest.fixture
def _no_caching() -> Iterator[None]:
    datasets.disable_caching()
    yield
    datasets.enable_caching()


def test_the_rows_are_the_same_and_stored_once(rows: datasets.Dataset, cache: Path) -> None:
    first = chat_template.on_disk(rows)
    second = chat_template.on_disk(datasets.Dataset.from_list(ROWS))
    assert first.to_list() == second.to_list() == ROWS
    assert first.cache_files == second.cache_files
    assert len(list(cache.iterdir())) == 1
    other = chat_template.on_disk(datasets.Dataset.from_list(ROWS[1:]))
    assert other.to_list() == ROWS[1:]
    assert len(list(cache.iterdir())) == 2


def test_what_is_made_of_them_is_found_by_another_process(cache: Path) -> None:
    """As TRL tokenizes: with `map`, a local function and its arguments."""
    program = f"""
import datasets
datasets.config.HF_DATASETS_CACHE = {str(cache.parent)!r}
from monolora.data import chat_template
rows = chat_template.on_disk(datasets.Dataset.from_list({ROWS!r}))
def longer(row, by):
    print("called")
    return {{"length": len(row["prompt"]) + by}}
print(sum(rows.map(longer, fn_kwargs={{"by": 2}})["length"]))
"""
    runs = [
        forks.run(program),
        # A new interpreter hashes strings otherwise than the process that is forked.
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ),
    ]
    total = str(sum(len(row["prompt"]) + 2 for row in ROWS))
    assert [run.stdout.split() for run in runs] == [["called"] * len(ROWS) + [total], [total]]


@pytest.mark.usefixtures("_no_caching")
def test_without_caching_they_stay_in_memory(rows: datasets.Dataset, cache: Path) -> None:
    assert chat_template.on_disk(rows) is rows
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    rows: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    assert chat_template.on_disk(rows) is rows


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _overwrite(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"Question 7", b"Question X"))


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("data-*.arrow", _cut),
        ("data-*.arrow", _overwrite),
        ("data-*.arrow", lambda path: path.write_bytes(b"")),
        ("data-*.arrow", Path.unlink),
        ("state.json", _cut),
        ("dataset_info.json", lambda path: path.write_text("[]")),
        ("cache-*.arrow", _cut),
        ("cache-*.arrow", lambda path: path.write_bytes(b"")),
    ],
)
def test_what_is_damaged_is_made_anew(
    rows: datasets.Dataset, cache: Path, pattern: str, damage: Callable[[Path], object]
) -> None:
    def derived() -> list[int]:
        return chat_template.on_disk(rows).map(_length, remove_columns=rows.column_names)["length"][:]

    lengths = derived()
    (path,) = cache.glob(f"*/{pattern}")
    damage(path)
    assert derived() == lengths
    assert chat_template.on_disk(rows).to_list() == ROWS


def _length(row: dict[str, str]) -> dict[str, int]:
    return {"length": len(row["prompt"])}


def _full_disk(self: datasets.Dataset, folder: str) -> None:
    (Path(folder) / "half").touch()
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_nothing_behind(
    rows: datasets.Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.Dataset, "save_to_disk", _full_disk)
    assert chat_template.on_disk(rows) is rows
    assert list(cache.glob("*")) == []


def test_another_run_that_was_faster(rows: datasets.Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save: Callable[..., None] = datasets.Dataset.save_to_disk

    def overtaken(self: datasets.Dataset, folder: str) -> None:
        save(self, str(cache / self._fingerprint))
        save(self, folder)

    monkeypatch.setattr(datasets.Dataset, "save_to_disk", overtaken)
    assert chat_template.on_disk(rows).to_list() == ROWS
    assert len(list(cache.iterdir())) == 1
