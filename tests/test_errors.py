"""What programs end with."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

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


def test_bugs_are_not_hidden() -> None:
    def program() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_status(program)


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
