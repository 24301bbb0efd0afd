"""Text of others on the terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.table import Table

from monolora.terminal import STDERR, Terminal, say, track

NAMES = ("[/b]", "[red]a", "a [link=x] b", ":smile:", "[bold", "a[/]")


def _printed(thing: object) -> str:
    out = io.StringIO()
    Terminal(file=out, width=60).print(thing)
    return out.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_no_markup(name: str) -> None:
    table = Table(title=f"title {name}")
    table.add_column(f"column {name}")
    table.add_row(f"cell {name}")
    table.add_row(f"last {name}", end_section=True)
    shown = _printed(table)
    assert all(f"{what} {name}" in shown for what in ("title", "column", "cell", "last"))
    assert _printed(f"text {name}") == f"text {name}\n"


def test_names_steer_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("a\x1b[2Jb")
    table.add_row("c\u202ed\x9be")
    shown = _printed(table) + _printed("f\x1b]0;title\x07g")
    assert not re.search("[\x1b\x9b\x07\u202e]", shown)
    assert "a[2Jb" in shown
    assert "cde" in shown
    say("h\x1b[31m\u2066i")
    assert capsys.readouterr().out == "h[31mi\n"


def test_own_colours_stay() -> None:
    out = io.StringIO()
    Terminal(file=out, force_terminal=True, color_system="standard").print("a", style="green")
    assert out.getvalue() == "\x1b[32ma\x1b[0m\n"


@pytest.mark.parametrize("name", NAMES)
def test_progress(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(3), f"On {name}")) == [0, 1, 2]
    assert f"On {name}" in capsys.readouterr().err
    assert STDERR.stderr


def test_nothing_else_prints_by_rich() -> None:
    """A console of rich itself would take names for markup."""
    root = Path(__file__).parents[1]
    files = [path for part in ("monolora", "recipes", "eval") for path in (root / part).rglob("*.py")]
    consoles = [path for path in files if re.search(r"rich\.console import|from rich import", path.read_text())]
    assert consoles == [root / "monolora" / "terminal.py"]
    assert not [path for path in files if "from rich.progress import track" in path.read_text()]
