"""The files of a report, and what happens when the disk does not take them."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from monolora.errors import SaveError
from monolora.eval.report import CSV, LATEX, PAGE, RESULTS, write
from monolora.eval.report.page import page
from monolora.eval.report.tables import as_csv, as_latex
from tests.support.synthetic_report import make

FILES = {RESULTS, CSV, LATEX, PAGE}


def test_files(tmp_path: Path) -> None:
    results, entries = make(prompts=12)
    write(tmp_path, results, entries)
    assert (
        {path.name for path in tmp_path.iterdir()} == FILES == {"results.json", "table.csv", "table.tex", "report.html"}
    )
    assert json.loads((tmp_path / RESULTS).read_text()) == json.loads(json.dumps(results))
    assert (tmp_path / CSV).read_text() == as_csv(results)
    assert (tmp_path / LATEX).read_text() == as_latex(results)
    assert (tmp_path / PAGE).read_text() == page(results, entries)


def test_the_same_results_give_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, *make(prompts=12))
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_text_that_has_no_utf8_is_written_all_the_same(tmp_path: Path) -> None:
    results, entries = make(prompts=2)
    results["title"] = "half \ud83d of a pair"
    write(tmp_path, results, entries)
    assert "half ? of a pair" in (tmp_path / PAGE).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_full_disk_leaves_the_older_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write(tmp_path, *make(prompts=6))
    before = (tmp_path / name).read_bytes()
    write_text = Path.write_text

    def full(self: Path, data: str, *args: str, **kwargs: str) -> int:
        if name in self.name:
            write_text(self, data[: len(data) // 2], *args, **kwargs)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(self, data, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SaveError, match=r"Cannot save into .*No space left.* then: monolora eval report --out "):
        write(tmp_path, *make(prompts=9, seed=1))
    monkeypatch.undo()
    assert (tmp_path / name).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="Cannot save into"):
        write(tmp_path / "nowhere", *make(prompts=2))
