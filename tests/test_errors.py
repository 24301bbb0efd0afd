"""What programs end with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings

import pytest

from monolora.cli.flags import words
from monolora.errors import InputError, RunError, SaveError, exit_status, in_one_line, unknown


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("Give a file."), 2, "error: Give a file.\n"),
        (RunError("It diverged."), 1, "error: It diverged.\n"),
        (SaveError("It is full."), 1, "error: It is full.\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_exit_status(capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str) -> None:
    def program() -> int:
        raise error

    assert exit_status(program) == status
    assert capsys.readouterr() == ("", line)


def test_a_programs_own_status() -> None:
    assert exit_status(lambda: 0) == 0
    assert exit_status(lambda: 1) == 1


def _raise_unforeseen() -> int:
    raise ZeroDivisionError("first\n  second")


def test_what_nobody_foresaw_is_one_line_with_type_and_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MONOLORA_TRACEBACK", raising=False)
    assert exit_status(lambda: len(words(3))) == 1  # type: ignore[arg-type]
    line = capsys.readouterr().err
    assert re.fullmatch(
        r"error: AttributeError: 'int' object has no attribute 'split'\. "
        r"\(cli/flags\.py:\d+; MONOLORA_TRACEBACK=1 shows more\)\n",
        line,
    )
    assert exit_status(_raise_unforeseen) == 1
    assert capsys.readouterr().err.startswith("error: ZeroDivisionError: first second. (")


def test_the_traceback_is_there_for_who_asks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONOLORA_TRACEBACK", "1")
    assert exit_status(_raise_unforeseen) == 1
    *before, last = capsys.readouterr().err.splitlines()
    assert before[0].startswith("Traceback (most recent call last)")
    assert any("in _raise_unforeseen" in line for line in before)
    assert last.startswith("error: ZeroDivisionError")


@pytest.mark.parametrize("error", [InputError, RunError, OSError])
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\x1b[31mb", "a[31mb"),
        ("a\u202eb\u2066c", "abc"),
        ("a\nb", "a b"),
        ("a\x9b2Jb\x07", "a2Jb"),
        ("caf\udce9", "caf"),
        ("é → 日本", "é → 日本"),
    ],
)
def test_text_of_others_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], error: type[Exception], name: str, shown: str
) -> None:
    def program() -> int:
        raise error(name)

    assert exit_status(program) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert shown in line


def test_warnings_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> int:
        print(warnings.formatwarning("mind\x1b[2J\nthe gap", UserWarning, "file.py", 3), end="")
        return 0

    assert exit_status(program) == 0
    assert capsys.readouterr().out == "warning: mind[2J the gap\n"


@pytest.mark.parametrize(
    ("prints", "status", "said"),
    [
        ("print('x')", 1, b"error: OSError: [Errno 28] No space left on device. ("),
        ("raise errors.InputError('Give a file.')", 2, b"error: Give a file.\n"),
    ],
)
def test_stdout_that_takes_nothing(prints: str, status: int, said: bytes) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", _program(prints)], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == status
    assert done.stderr.startswith(said)
    assert done.stderr.count(b"\n") == 1


def test_stderr_that_takes_nothing() -> None:
    with open("/dev/full", "wb") as full:
        code = _program("raise errors.InputError('Give a file.')")
        assert subprocess.run([sys.executable, "-c", code], stderr=full, check=False).returncode == 2


def test_a_terminal_that_cannot_show_a_character() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _program("print('90 % \\u2192 95 % caf\\udce9')")],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"90 % \\u2192 95 % caf\\udce9\n"


def _program(statement: str) -> str:
    """A program of one statement; the package's folder: the module needs nothing of the rest, which takes seconds."""
    return (
        f"import sys\nsys.path.insert(0, {_here()!r})\nimport errors\n"
        f"def program():\n    {statement}\n    return 0\n"
        "sys.exit(errors.exit_status(program))"
    )


def test_an_exit_of_argparse_stays(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        exit_status(lambda: sys.exit(0))


def test_warnings_take_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    before = warnings.formatwarning

    def program() -> int:
        print(warnings.formatwarning("mind the gap", UserWarning, "file.py", 3), end="")
        return 0

    assert exit_status(program) == 0
    assert capsys.readouterr().out == "warning: mind the gap\n"
    assert warnings.formatwarning is before


@pytest.mark.parametrize("prints", ["print('x' * 100_000)", "__import__('rich.console').console.Console().print('x')"])
def test_closed_pipe(prints: str) -> None:
    """The reader is gone before the program prints, by Python or by rich."""
    code = f"import sys; sys.path.insert(0, {str(_here())!r})\n"
    code += "from errors import exit_status\n"
    code += f"def program():\n    sys.stdin.read()\n    {prints}\n    return 0\n"
    code += "sys.exit(exit_status(program))"
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.close()  # what it waits for
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def _here() -> str:
    """The package's folder: the module needs nothing of the rest, whose import takes seconds."""
    import monolora

    return monolora.__path__[0]


def test_in_one_line() -> None:
    assert in_one_line(ValueError("first.\n  second:\n")) == "first. second."
    assert in_one_line(ValueError("Did you mean it?")) == "Did you mean it?"
    assert in_one_line(ValueError()) == "ValueError."
    assert len(in_one_line(ValueError("word " * 200))) <= 300


def test_unknown() -> None:
    assert str(unknown("--adapter", "lroa", ("lora", "none"))) == (
        "Unknown --adapter 'lroa'; choose one of lora, none. Did you mean lora?"
    )
    assert "mean" not in str(unknown("--adapter", "zzz", ("lora", "none")))


def test_save_error() -> None:
    message = str(SaveError.of("runs/a", OSError(28, "No space left on device"), "Free space."))
    assert message == "Cannot save into runs/a: [Errno 28] No space left on device. Free space."


def test_a_name_that_is_too_long(capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> int:
        return len(os.listdir(5000 * "x"))

    assert exit_status(program) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: File name too long: {60 * 'x'}… Take a shorter name."
