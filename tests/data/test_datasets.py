"""Data sets by path and in the mirror."""

from __future__ import annotations

import bz2
import gzip
import json
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
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


def _packed(path: Path, content: bytes) -> None:
    pack = {".gz": gzip.compress, ".zst": partial(pa.compress, codec="zstd", asbytes=True)}.get(path.suffix, bytes)
    path.write_bytes(pack(content))


CSV = b"prompt%scompletion\na%sb\nc%sd\n"
CONTENTS = {
    "jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in ROWS),
    "json": json.dumps(ROWS, indent=1).encode(),
    "csv": CSV.replace(b"%s", b","),
    "tsv": CSV.replace(b"%s", b"\t"),
}


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", CONTENTS)
def test_data_files(tmp_path: Path, suffix: str, packing: str) -> None:
    path = tmp_path / f"rows.{suffix}{packing}"
    _packed(path, CONTENTS[suffix])
    assert load_dataset(str(path))["train"].to_list() == ROWS


def test_parquet_files(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    assert load_dataset(str(tmp_path / "rows.parquet"))["train"].to_list() == ROWS


@pytest.mark.parametrize("name", ["rows.txt", "rows.parquet.gz", "rows.gz", "rows"])
def test_files_of_other_types(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"a")
    with pytest.raises(InputError, match=r"are not read; use \.csv, .*\.parquet, or one of the first 4 packed as \.gz"):
        load_dataset(str(tmp_path / name))


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    rows.with_format("numpy").save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=rows, test=rows.select([1])).save_to_disk(tmp_path / "two")
    assert {name: split[:] for name, split in load_dataset(str(tmp_path / "one")).items()} == {"train": rows[:]}
    splits = load_dataset(str(tmp_path / "two"))
    assert {name: split.to_list() for name, split in splits.items()} == {"train": ROWS, "test": ROWS[1:]}
    with pytest.raises(InputError, match=r"made by save_to_disk and has no configuration 'x'"):
        load_dataset(str(tmp_path / "two"), "x")
    shard = next((tmp_path / "one").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(InputError, match=r"Cannot read .*one, which was made by save_to_disk: .*Copy it again"):
        load_dataset(str(tmp_path / "one"))
    shard.unlink()
    with pytest.raises(InputError, match=r"Cannot read .*one, which was made by save_to_disk"):
        load_dataset(str(tmp_path / "one"))


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
    (tmp_path / "train.tsv").unlink()
    for module, suffix, says in ((gzip, "gz", "row 1 .* has 3 fields"), (bz2, "bz2", "is not read.*Unpack it")):
        path = tmp_path / f"train.csv.{suffix}"
        path.write_bytes(module.compress(b"instruction,output\na,b,c\n"))
        with pytest.raises(InputError, match=rf"train.csv.{suffix}.*{says}"):
            load_dataset(str(tmp_path))
        path.unlink()
    (tmp_path / "train.csv").write_text("instruction;output\na;b\n")
    about = "---\nconfigs:\n- config_name: default\n  data_files: train.csv\n  {}\n---\n"
    (tmp_path / "README.md").write_text(about.format("sep: ';'"))
    assert load_dataset(str(tmp_path))["train"].to_list() == [{"instruction": "a", "output": "b"}]
    (tmp_path / "README.md").write_text(about.format("skiprows: 1"))
    with pytest.raises(InputError, match=r"README.md sets skiprows for its CSV files, which is not honoured here"):
        load_dataset(str(tmp_path))
