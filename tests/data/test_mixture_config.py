"""What names a mixture: ``--dataset`` given repeatedly, and TRL's list in YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monolora.data.mixture_config import Component, from_settings, from_words, split_share
from monolora.errors import InputError


@pytest.mark.parametrize(
    ("word", "name", "share"),
    [
        ("sst2:0.9", "sst2", 0.9),
        ("sst2:1", "sst2", 1.0),
        ("owner/name:2e-1", "owner/name", 0.2),
        (r"C:\data\rows.jsonl", r"C:\data\rows.jsonl", None),
        (r"C:\data\rows.jsonl:3", r"C:\data\rows.jsonl", 3.0),
        ("s3://bucket/rows.jsonl:.5", "s3://bucket/rows.jsonl", 0.5),
        ("owner/name:config", "owner/name:config", None),
        ("rows:", "rows:", None),
        ("a:b:0.5", "a:b", 0.5),
        (":0.5", ":0.5", None),
    ],
)
def test_a_share_is_a_number_after_the_last_colon(word: str, name: str, share: float | None) -> None:
    assert split_share(word) == Component(name, fraction=share)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sst2:0", "dolly:1"], "--dataset sst2:0: a share must be a number above 0, got 0.0"),
        (["sst2:-0.5", "dolly:1"], "a share must be a number above 0, got -0.5"),
        (["sst2:nan", "dolly:1"], "a share must be a number above 0, got nan"),
        (["sst2:inf", "dolly:1"], "a share must be a number above 0, got inf"),
        (["sst2:0.5", "dolly"], "--dataset dolly has no share, and others have one"),
        (["a/b:much", "dolly:0.5"], r"--dataset a/b:much has no share \('much' is no number\), and others have one"),
        (["sst2:90%", "dolly:10%"], "--dataset sst2:90%: a share is a number, as in sst2:0.5, and '90%' is none"),
        (["sst2:", "dolly"], "--dataset sst2:: a share is a number, as in sst2:0.5, and '' is none"),
        (["sst2:0.5"], "--dataset sst2:0.5: a share is of a mixture, and this is the only data set"),
        (["sst2", "dolly", "sst2"], "--dataset sst2 is named twice. Name it once"),
        (["sst2:0.5", "sst2:0.7"], "--dataset sst2 is named twice"),
    ],
)
def test_what_is_no_mixture(words: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        from_words(words)


def test_a_data_set_is_known_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"--dataset \./rows.jsonl is named twice, as rows.jsonl\. Name it once"):
        from_words(["rows.jsonl", "./rows.jsonl"])
    (tmp_path / "rows.jsonl:2").write_text("{}")
    with pytest.raises(InputError, match="there is a file of this name, and a number after a colon is a share"):
        split_share("rows.jsonl:2")


def test_trls_list() -> None:
    entries = [
        {"path": "owner/a", "name": "en", "split": "validation", "columns": ["prompt", "completion"], "fraction": 3},
        {"path": "owner/a", "fraction": 0.5, "data_dir": None},
    ]
    assert from_settings(entries, "here") == [
        Component("owner/a", "en", "validation", ("prompt", "completion"), 3), Component("owner/a", fraction=0.5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ("a", "datasets must be a list of mappings with a path"),
        ([], "datasets must be a list of mappings with a path"),
        (["a", "b"], "datasets must be a list of mappings with a path"),
        ([{"name": "a"}], "entry 1: path is missing"),
        ([{"path": 3}], "entry 1: path must be a text, got 3"),
        ([{"path": "a", "weight": 1}], "Unknown field in here: datasets, entry 1, 'weight'; choose one of path, name"),
        ([{"path": "a", "data_dir": "d"}], "entry 1: data_dir has no effect here; give the folder as its path"),
        ([{"path": "json", "data_files": "d"}], "data_files has no effect here; give the file as its path"),
        ([{"path": "a", "columns": "prompt"}], "columns must be a list of names, got 'prompt'"),
        ([{"path": "a", "fraction": "1"}], "fraction must be a number, got '1'"),
        ([{"path": "a", "fraction": True}], "fraction must be a number, got True"),
        ([{"path": "a", "fraction": -1}], "a share must be a number above 0, got -1"),
        ([{"path": "a", "fraction": 1}, {"path": "b"}], "b has no share, and others have one"),
        ([{"path": "a"}, {"path": "a"}], "a is named twice"),
    ],
)
def test_what_is_no_such_list(entries: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        from_settings(entries, "here")
