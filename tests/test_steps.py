"""Programs of several steps."""

from __future__ import annotations

import pytest

from monolora.errors import InputError
from monolora.steps import run_step


def run(*words: str) -> int:
    seen: list[tuple[str, list[str]]] = []
    status = run_step(
        list(words), "monolora test", ("one", "two"), "What it is for.", lambda *step: seen.append(step) or 7
    )
    assert seen == ([(words[0], list(words[1:]))] if status == 7 else [])
    return status


def test_the_first_word_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("two", "--flag", "one") == 7
    assert capsys.readouterr().out == ""


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert (run("--help"), run("-h"), run()) == (0, 0, 2)
    assert capsys.readouterr().out == 3 * "What it is for.\nFlags: monolora test STEP --help\n"


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match=r"Which step\? It comes before the flags: monolora test one \| two\."):
        run("--flag", "one")
    with pytest.raises(InputError, match="Did you mean two"):
        run("twoo")
