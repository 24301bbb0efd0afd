"""Data sets by path and in the mirror."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pytest

from monolora.data.datasets import load_dataset
from monolora.errors import InputError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


pytestmark = pytest.mark.usefixtures("no_mirror")


def _write_rows(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_data_sets_by_path_and_in_the_mirror(empty_mirror: Path, tmp_path: Path) -> None:
    _write_rows(empty_mirror / "org" / "data" / "train.jsonl")
    _write_rows(empty_mirror / "org" / "data" / "test.jsonl")
    splits = load_dataset("org/data")
    assert {name: list(rows) for name, rows in splits.items()} == {"train": ROWS, "test": ROWS}
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"Cannot read .*empty as a data set"):
        load_dataset(str(tmp_path / "empty"))


def test_csv_files_of_a_folder_are_read_as_strictly(empty_mirror: Path) -> None:
    folder = empty_mirror / "org" / "data"
    folder.mkdir(parents=True)
    (folder / "train.csv").write_text("instruction,output\nNA,4.50\n")
    (folder / "test.csv").write_text("instruction,output\na,\n")
    splits = load_dataset("org/data")
    assert splits["train"].to_list() == [{"instruction": "NA", "output": "4.50"}]
    assert splits["test"].to_list() == [{"instruction": "a", "output": ""}]
    (folder / "train.csv").write_text("instruction,output\na,b,\nc,d,\n")
    with pytest.raises(InputError, match=r"train\.csv, row 1 \(line 2\) has 3 fields"):
        load_dataset("org/data")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_data_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    rows = datasets.Dataset.from_list(ROWS)
    {"jsonl": rows.to_json, "json": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[suffix](path)
    assert list(load_dataset(str(path))["train"]) == ROWS


def test_a_file_name_is_no_pattern(tmp_path: Path) -> None:
    path = _write_rows(tmp_path / "rows [ab]*.jsonl")
    assert load_dataset(str(path))["train"].to_list() == ROWS


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    """`datasets` caches by name and time; a run must see what is in the file."""
    path = _write_rows(tmp_path / "rows.jsonl")
    assert load_dataset(str(path))["train"][0] == ROWS[0]
    path.write_text(path.read_text().replace('"b"', '"x"'))
    assert load_dataset(str(path))["train"][0] == {"prompt": "a", "completion": "x"}


def test_tables_in_a_folder_are_read_as_strictly_as_a_file(tmp_path: Path) -> None:
    """Whatever separates their cells; pandas would take the first cell of a longer row for its number."""
    (tmp_path / "train.tsv").write_text("instruction\toutput\na\tb\nc\td, e\n")
    assert load_dataset(str(tmp_path))["train"].to_list() == [
        {"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d, e"},
    ]  # fmt: skip
    (tmp_path / "train.tsv").write_text("instruction\toutput\na\tb\tc\n")
    with pytest.raises(InputError, match=r"train.tsv, row 1 \(line 2\) has 3 fields, and the header has 2"):
        load_dataset(str(tmp_path))
    with gzip.open(tmp_path / "train.csv.gz", "wt") as file:
        file.write("instruction,output\na,b,c\n")
    (tmp_path / "train.tsv").unlink()
    with pytest.raises(InputError, match=r"train.csv.gz is not read.*Unpack it"):
        load_dataset(str(tmp_path))
    (tmp_path / "train.csv.gz").unlink()
    (tmp_path / "train.csv").write_text("instruction;output\na;b\n")
    about = "---\nconfigs:\n- config_name: default\n  data_files: train.csv\n  {}\n---\n"
    (tmp_path / "README.md").write_text(about.format("sep: ';'"))
    assert load_dataset(str(tmp_path))["train"].to_list() == [{"instruction": "a", "output": "b"}]
    (tmp_path / "README.md").write_text(about.format("skiprows: 1"))
    with pytest.raises(InputError, match=r"README.md sets skiprows for its CSV files, which is not honoured here"):
        load_dataset(str(tmp_path))
