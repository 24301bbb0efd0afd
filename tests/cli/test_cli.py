"""The ``monolora`` command picks programs and ends as they do."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monolora import cli, doctor
from monolora.cli import docstring_of, run_step
from monolora.errors import InputError, SaveError


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], Any]], None]:
    """``program(main)``: what ``monolora doctor`` runs."""
    return lambda main: monkeypatch.setattr(doctor, "main", main)


def test_every_command_is_a_program() -> None:
    for command in cli.COMMANDS.values():
        program = importlib.import_module(command.module)
        assert callable(program.main)
        assert not command.settings or callable(program.run)
        assert command.summary


def test_the_rest_of_the_line_goes_to_the_program(program: Callable[..., None]) -> None:
    seen: list[str] = []
    program(lambda words: seen.extend(words) or 1)
    assert cli.main(["doctor", "--a", "b"]) == 1
    assert seen == ["--a", "b"]


def test_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in cli.COMMANDS)
    assert all(f"{title}:\n" in out for title in cli.GROUPS)
    assert out.rstrip().endswith("New here? monolora demo, then monolora sft --keep silence.")


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["docter"]) == 2
    assert capsys.readouterr().err == (
        "error: Unknown command 'docter'; choose one of sft, dpo, data, plan, demo, align, eval, keep-report, "
        "judge, sparsity, explain, prune, repair, chat, merge, export, verify, serve-check, study, vision, "
        "superposition, "
        "doctor, configs. Did you mean doctor?\n"
    )


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_unknown_flags_of_every_program(capsys: pytest.CaptureFixture[str], name: str, tmp_path: Path) -> None:
    words = {"sparsity": [str(tmp_path)], "eval": ["run"], "vision": ["probe"], "superposition": ["run"]}.get(name, [])
    assert cli.main([name, *words, "--bogus-flag"]) == 2
    assert capsys.readouterr().err.startswith("error: Unknown flag --bogus-flag.")


@pytest.mark.parametrize(("error", "status"), [(InputError("x"), 2), (SaveError("x"), 1), (KeyboardInterrupt(), 130)])
def test_errors_of_programs(program: Callable[..., None], error: BaseException, status: int) -> None:
    def main(words: list[str]) -> int:
        raise error

    program(main)
    assert cli.main(["doctor"]) == status


def test_ctrl_c(program: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(words: list[str]) -> None:
        raise KeyboardInterrupt

    program(interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_docstrings_without_importing() -> None:
    assert docstring_of("monolora.doctor") == doctor.__doc__


def run_two(*words: str) -> int:
    seen: list[tuple[str, list[str]]] = []
    status = run_step(
        list(words), "monolora test", ("one", "two"), "What it is for.", lambda *step: seen.append(step) or 7
    )
    assert seen == ([(words[0], list(words[1:]))] if status == 7 else [])
    return status


def test_the_first_word_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_two("two", "--flag", "one") == 7
    assert capsys.readouterr().out == ""


def test_help_of_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert (run_two("--help"), run_two("-h"), run_two()) == (0, 0, 2)
    assert capsys.readouterr().out == 3 * "What it is for.\nFlags: monolora test STEP --help\n"


def test_words_that_are_no_step() -> None:
    with pytest.raises(InputError, match=r"Which step\? It comes before the flags: monolora test one \| two\."):
        run_two("--flag", "one")
    with pytest.raises(InputError, match="Did you mean two"):
        run_two("twoo")
