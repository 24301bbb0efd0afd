"""Result folders: what may be replaced, one process at a time, whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from monolora.errors import InputError, RunError
from monolora.locks import locked
from monolora.runs import Kind, claim
from tests.support.processes import kill

NOTE = Kind(name="note", record="note.json", keys=("note.text",), files=(r"pages/\d+\.txt", "cover.png", "drawers/"))
RECORD = {"note": {"text": "mine"}}


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """Every path below a folder with what is there: bytes, a link's target, or None for a folder."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


def replace(path: str | Path, *inputs: str | Path, overwrite: bool = True, kind: Kind = NOTE) -> None:
    """Remove what is in a folder, as a program does that works in it."""
    with claim(path, kind, "--out") as folder:
        folder.check(overwrite)
        folder.check_apart(inputs)
        folder.clear()


def write(path: Path, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Replace a folder whole."""
    with claim(path, NOTE) as folder:
        folder.check(overwrite=True)
        with folder.whole() as aside:
            (aside / "cover.png").write_bytes(b"new")
            meanwhile()


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """An earlier result."""
    folder = tmp_path / "shelf" / "note"
    (folder / "pages").mkdir(parents=True)
    (folder / "note.json").write_text(json.dumps(RECORD))
    (folder / "pages" / "1.txt").write_text("one")
    return folder


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """``refused(path, *inputs)``: why a folder cannot be replaced. Nothing on the disk has changed then."""

    def check(path: str | Path, *inputs: str | Path, overwrite: bool = True, kind: Kind = NOTE) -> str:
        before = contents(tmp_path)
        with pytest.raises(InputError) as error:
            replace(path, *inputs, overwrite=overwrite, kind=kind)
        assert contents(tmp_path) == before
        assert "\n" not in str(error.value)
        return str(error.value)

    return check


def test_a_result_is_replaced_in_place(note: Path) -> None:
    with claim(note, NOTE) as folder:
        folder.check(overwrite=True)
        folder.clear()
        assert list(note.iterdir()) == []
        (note / "note.json").write_text("new")
    assert os.listdir(note.parent) == ["note"]
    assert contents(note) == {"note.json": b"new"}


def test_a_result_is_replaced_whole(note: Path) -> None:
    with claim(note, NOTE) as folder:
        folder.check(overwrite=True)
        with folder.whole() as aside:
            (aside / "cover.png").write_bytes(b"new")
            assert (note / "pages" / "1.txt").read_text() == "one"
    assert os.listdir(note.parent) == ["note"]
    assert contents(note) == {"cover.png": b"new"}


def test_new_and_empty_folders_are_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "new", tmp_path / "a" / "b" / "c"):
        with claim(path, NOTE) as folder:
            folder.check(overwrite=False)
            with folder.whole() as aside:
                (aside / "cover.png").write_bytes(b"new")
        assert contents(path) == {"cover.png": b"new"}
    assert not list(tmp_path.rglob(".*"))


def test_without_overwrite(note: Path, refused: Callable[..., str]) -> None:
    said = f"--out {note} holds another note. Take another folder, or replace it with --overwrite."
    assert refused(note, overwrite=False) == said


RECORDS = {
    "none": None,
    "another program's": {"config": {}, "results": {}},
    "the key of another kind": {"note": "mine"},
    "a list": [RECORD],
    "broken": "{",
    "no text": b"\xff\xfe",
}


@pytest.mark.parametrize("name", RECORDS)
def test_only_what_the_same_program_recorded_is_replaced(note: Path, refused: Callable[..., str], name: str) -> None:
    match RECORDS[name]:
        case None:
            (note / "note.json").unlink()
        case bytes(content):
            (note / "note.json").write_bytes(content)
        case content:
            (note / "note.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert refused(note) == f"--out {note} exists and is no note. Take another folder."


def test_a_file_is_no_folder(note: Path, refused: Callable[..., str]) -> None:
    assert "exists and is no note" in refused(note / "note.json")
    (note.parent / "nowhere").symlink_to("gone")
    assert "exists and is no note" in refused(note.parent / "nowhere")


FOREIGN: dict[str, Callable[[Path], object]] = {
    "thesis.tex": lambda path: path.write_text("years of work"),
    "pages/1.txt~": lambda path: path.write_text("draft"),
    "pages/one.txt": lambda path: path.write_text("one"),
    "pages/2.txt/deep.txt": lambda path: (path.parent.mkdir(), path.write_text("deep")),
    ".git/HEAD": lambda path: (path.parent.mkdir(), path.write_text("ref")),
    "COVER.PNG": lambda path: path.write_text("not the same name"),
    "drawer/": lambda path: path.mkdir(),
    "cover.png": lambda path: path.symlink_to("/etc/hostname"),
    "pages/7.txt": lambda path: path.symlink_to("1.txt"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_no_such_program_writes_is_not_removed(note: Path, refused: Callable[..., str], name: str) -> None:
    """A link is never of the program's making, whatever it is called."""
    FOREIGN[name](note / name)
    assert f"cannot be replaced: {name} in it is not of the earlier note. Move it away" in refused(note)


def test_how_many_foreign_files(note: Path, refused: Callable[..., str]) -> None:
    for name in "cba":
        (note / name).touch()
    assert "cannot be replaced: a and 2 more in it is not" in refused(note)


@pytest.fixture
def here(note: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the result, as working directory."""
    monkeypatch.chdir(note)
    return note


@pytest.mark.parametrize("path", [".", "./", "pages/..", "../note", "{note}", "{note}/", "{note}/pages/.."])
def test_the_working_directory(here: Path, refused: Callable[..., str], path: str) -> None:
    assert "is the working directory, or holds it" in refused(path.format(note=here))


def test_what_holds_the_working_directory(
    note: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(note / "pages")
    for path in ("..", "../", "../pages/..", "../..", note):
        assert "is the working directory, or holds it" in refused(path)
    assert "is the root of the file system" in refused("/")


@pytest.mark.parametrize(("variable", "says"), [("HOME", "the home folder"), ("MONOLORA_DATA", "MONOLORA_DATA")])
@pytest.mark.parametrize("below", ["", "pages"])
def test_places_of_the_user(
    note: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, variable: str, says: str, below: str
) -> None:
    (note.parent / "link").symlink_to(note / below)
    for path in (note / below, note.parent / "link"):
        monkeypatch.setenv(variable, str(path))
        assert f"is {says}, or holds it" in refused(note)


INPUTS: dict[str, Callable[[Path], str | Path]] = {
    "itself": lambda note: note,
    "in it": lambda note: note / "pages",
    "a file": lambda note: note / "pages" / "1.txt",
    "with dots": lambda note: note / "pages" / ".." / "pages" / "1.txt",
    "with a slash": lambda note: f"{note}/",
    "relative": lambda note: os.path.relpath(note / "pages"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_what_the_result_is_made_from(note: Path, refused: Callable[..., str], name: str) -> None:
    path = INPUTS[name](note)
    assert f"holds {Path(path)}, which the note is made from. Take another folder." in refused(note, path)


def test_links_to_what_is_replaced(note: Path, refused: Callable[..., str]) -> None:
    """As in the hub's cache, whose snapshots are folders of links."""
    model = note.parent / "model"
    (model / "deep").mkdir(parents=True)
    (model / "deep" / "weights").symlink_to(note / "pages" / "1.txt")
    (note.parent / "link").symlink_to(note)
    for path in (model, note.parent / "link", note.parent / "link" / "pages"):
        assert "which the note is made from" in refused(note, path)


def test_inputs_elsewhere(note: Path) -> None:
    """A folder that holds the result, one whose name begins alike, and one that is not there."""
    (note.parent / "note-2").mkdir()
    with claim(note, NOTE) as folder:
        folder.check(overwrite=True)
        folder.check_apart([note.parent, note.parent / "note-2", note / "gone"])
        folder.clear()
    assert list(note.iterdir()) == []


def test_another_name_of_the_same_folder(note: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    """As on a disk that does not tell cases apart: by inode, not by name."""
    other = tmp_path / "other"
    other.mkdir()
    if subprocess.run(["mount", "--bind", note, other], capture_output=True).returncode != 0:
        pytest.skip("no folder can be mounted at a second place here")
    try:
        assert "which the note is made from" in refused(note, other / "pages" / "1.txt")
    finally:
        subprocess.run(["umount", other], check=True)


def test_symlinks(note: Path, refused: Callable[..., str]) -> None:
    (note.parent / "link").symlink_to("note")
    (note.parent.parent / "shelf-2").symlink_to("shelf")
    for path in (note.parent / "link", note.parent.parent / "shelf-2" / "note", note.parent / "link" / ".." / "note"):
        assert f"is a symlink. Give the folder that is meant, {note}." in refused(path)


def test_what_changes_after_the_check_is_not_removed(note: Path) -> None:
    changes: list[Callable[[], object]] = [
        lambda: (note / "thesis.tex").write_text("years of work"),
        lambda: (note / "pages" / "1.txt").write_text("other"),
        lambda: (note / "pages" / "1.txt").unlink(),
    ]
    for change in changes:
        with claim(note, NOTE) as folder:
            (note / "thesis.tex").unlink(missing_ok=True)
            (note / "pages" / "1.txt").write_text("one")
            folder.check(overwrite=True)
            change()
            before = contents(note)
            with pytest.raises(InputError, match="has changed since this program began"):
                folder.clear()
            assert contents(note) == before


def test_what_is_put_in_while_a_result_is_written(note: Path) -> None:
    def meanwhile() -> None:
        (note / "thesis.tex").write_text("years of work")
        (note / "pages" / "1.txt").write_text("edited")

    with pytest.warns(UserWarning, match=r"What was put into .*note meanwhile is in .*note-earlier\."):
        write(note, meanwhile)
    assert contents(note) == {"cover.png": b"new"}
    kept = {"thesis.tex": b"years of work", "pages": None, "pages/1.txt": b"edited"}
    assert contents(note.parent / "note-earlier") == kept
    assert sorted(os.listdir(note.parent)) == ["note", "note-earlier"]


def test_a_folder_that_is_filled_while_a_result_is_written(tmp_path: Path) -> None:
    def meanwhile() -> None:
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "thesis.tex").write_text("years of work")

    with pytest.raises(RunError, match=r"new was filled meanwhile by something else\. The result is in .*new-new\."):
        write(tmp_path / "new", meanwhile)
    assert contents(tmp_path / "new") == {"thesis.tex": b"years of work"}
    assert contents(tmp_path / "new-new") == {"cover.png": b"new"}
    assert sorted(os.listdir(tmp_path)) == ["new", "new-new"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RunError("diverged")])
def test_a_failure_leaves_everything_as_it_was(note: Path, tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        raise error

    for name in ("part", "old", "lock-2"):
        (note.parent / f".note.{name}").mkdir()
        (note.parent / f".note.{name}" / "mine").touch()
    before = contents(tmp_path)
    for path in (note, tmp_path / "a" / "b"):
        with pytest.raises(type(error)):
            write(path, fail)
        assert contents(tmp_path) == before


def test_an_unfinished_result_needs_no_overwrite(note: Path, refused: Callable[..., str]) -> None:
    draft = Kind(**{**vars(NOTE), "is_unfinished": lambda record, paths: "cover.png" not in set(paths)})
    (note / "thesis.tex").touch()
    assert "thesis.tex in it is not of" in refused(note, overwrite=False, kind=draft)
    (note / "thesis.tex").unlink()
    (note / "cover.png").touch()
    assert "replace it with --overwrite" in refused(note, overwrite=False, kind=draft)
    (note / "cover.png").unlink()
    with claim(note, draft) as folder:
        folder.check(overwrite=False)
        folder.clear()
    assert list(note.iterdir()) == []


def test_a_second_process_is_refused_and_a_killed_one_lets_go(note: Path, holder: Callable[..., int]) -> None:
    (note.parent / "link").symlink_to("note")
    process = holder(lambda wait: write(note, wait))
    before = contents(note.parent)
    for path in (note, f"{note}/", note / "pages" / "..", note.parent / "link", os.path.relpath(note)):
        with pytest.raises(InputError, match=f"is in use by process {process}\\. Wait"):
            replace(path)
    assert contents(note.parent) == before
    replace(note.parent / "other")  # each folder has its own
    kill(process)
    with claim(note, NOTE) as folder:
        folder.check(overwrite=True)
    assert sorted(os.listdir(note.parent)) == ["link", "note"]  # what it had aside is gone with it
    assert (note / "pages" / "1.txt").read_text() == "one"


def test_one_that_waits(note: Path, holder: Callable[..., int]) -> None:
    process = holder(lambda wait: write(note, wait))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: list(map(str, _entered(note))))
        assert not waiting.done()
        kill(process)
        assert waiting.result(60) == ["entered"]
    assert os.listdir(note.parent) == ["note"]


def _entered(path: Path) -> Iterator[str]:
    with locked(path, waits=True):
        yield "entered"


def test_killed_while_the_earlier_result_is_aside(note: Path, holder: Callable[..., int]) -> None:
    def work(wait: Callable[[], None]) -> None:
        real = Path.replace

        def waiting(self: Path, target: Path) -> Path:
            if self.suffix == ".part":
                wait()
            return real(self, target)

        Path.replace = waiting  # type: ignore[method-assign]
        write(note)

    before = contents(note)
    process = holder(work)
    assert not note.exists()
    kill(process)
    with claim(note, NOTE) as folder:
        folder.check(overwrite=True)
    assert contents(note) == before
    assert os.listdir(note.parent) == ["note"]


def test_killed_while_the_earlier_result_is_removed(note: Path, holder: Callable[..., int]) -> None:
    """Nobody takes what is left for a result; the same program may still replace it."""

    def work(wait: Callable[[], None]) -> None:
        Path.unlink = lambda self, missing_ok=False: wait()  # type: ignore[method-assign]
        replace(note)

    kill(holder(work))
    assert not (note / "note.json").exists()
    assert (note / "pages" / "1.txt").exists()
    replace(note)
    assert list(note.iterdir()) == []


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    said = r"cannot be locked \(No locks available\): a second run into .*out would not be refused"
    with pytest.warns(UserWarning, match=said):
        write(tmp_path / "out")
    assert contents(tmp_path / "out") == {"cover.png": b"new"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_parent_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a volume that a container mounts: the lock is in the folder."""
    out = tmp_path / "mounted" / "out"
    out.mkdir(parents=True)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != out.parent and access(path, mode))
    with claim(out, Kind(**{**vars(NOTE), "is_whole": False})) as folder:
        folder.check(overwrite=False)
        assert os.listdir(out) == [".lock"]
        with pytest.raises(InputError, match="is in use by process"), locked(out):
            pass
    with claim(out, NOTE) as folder, pytest.raises(InputError, match="cannot be written aside and renamed"):
        folder.check(overwrite=False)
    assert contents(tmp_path) == {"mounted": None, "mounted/out": None}


def test_links_in_a_circle(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "exists and is no note" in refused(tmp_path / "a")
