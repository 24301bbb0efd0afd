"""Errors of a program, each one line that names the fix: bad input (exit status 2) or a failure (1)."""

from __future__ import annotations

import difflib
import errno
import io
import os
import re
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from monolora.redaction import redact, redacted_stderr

_T = TypeVar("_T")
# Control characters (all but tab and newline), marks and overrides of the writing direction, line and paragraph
# separators, halves of surrogate pairs: names of files, models and columns are text of others, and a terminal obeys it.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


class InputError(ValueError):
    """Something the user gave cannot work; the message is one line and names the fix."""


class RunError(RuntimeError):
    """The input was valid but the work failed; the message is one line."""


class SaveError(RunError):
    """Something could not be written: a full disk, lost permissions."""

    @classmethod
    def of(cls, folder: object, error: BaseException, fix: str) -> SaveError:
        """From what the writing library raised, and what to do about it."""
        return cls(f"Cannot save into {folder}: {in_one_line(error)} {fix}")


def is_disk_trouble(error: Exception) -> bool:
    """Whether this is what a library raises when the disk does not take a file."""
    # torch.save raises a bare RuntimeError, the tokenizers library a bare Exception.
    return isinstance(error, (OSError, SafetensorError, RuntimeError)) or type(error) is Exception


def unknown(what: str, name: str, choices: Iterable[str]) -> InputError:
    """An :class:`InputError` for a name that is none of ``choices``, with the nearest of them."""
    options = list(choices)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return InputError(f"Unknown {what} {name!r}; choose one of {', '.join(options)}.{hint}")


def in_one_line(error: BaseException) -> str:
    """A library's message as one sentence on one line, 300 characters of it at most, without secrets."""
    text = textwrap.shorten(redact(str(error)) or type(error).__name__, 300, placeholder=" …").rstrip(" .:")
    return text if text.endswith(("?", "!", "…")) else f"{text}."


def printable(text: str) -> str:
    """Without what would move the cursor, colour the screen, turn the writing direction, or cannot be encoded."""
    return _UNPRINTABLE.sub("", text)


def on_main_process(action: Callable[[], _T]) -> _T | None:
    """Do something, such as claiming a folder, in the main process of a launch; a refusal there ends all processes.

    Returns:
        What it gives; None in the other processes.

    Raises:
        InputError: in all of them.
    """
    from accelerate import PartialState  # a second, which programs of one process do without
    from accelerate.utils import broadcast_object_list

    value, refusal = None, None
    if PartialState().is_main_process:
        try:
            value = action()
        except InputError as error:
            refusal = str(error)
    [refusal] = broadcast_object_list([refusal])
    if refusal is not None:
        raise InputError(refusal)
    return value


@redacted_stderr()
def exit_status(program: Callable[[], int]) -> int:
    """Run a program; what it raises, and each warning, becomes one line on stderr.

    An exception that is neither :class:`InputError` nor :class:`RunError` is a bug or unforeseen: its line has the
    exception's type, and the line of this project that raised it. With ``MONOLORA_TRACEBACK=1`` in the environment,
    the traceback of every error comes before its line.

    Returns:
        The exit status. It is the program's own, 1 for a failure, 2 for bad input, 130 after Ctrl-C, 141 where the
        reader of the output went away (as in ``monolora … | head``).
    """
    original, warnings.formatwarning = warnings.formatwarning, lambda message, *_, **__: f"warning: {_line(message)}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):  # results are printed whatever the terminal's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = program()
        sys.stdout.flush()
        return status
    except InputError as error:
        _say(f"error: {_line(error)}", error)
        return 2
    except RunError as error:
        _say(f"error: {_line(error)}", error)
        return 1
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    except (BrokenPipeError, SystemExit) as error:
        # rich turns a broken pipe into an exit of its own
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _drop_stdout()
        return 141
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            return _unforeseen(error)
        _say(f"error: {error.strerror}: {str(error.filename)[:60]}… Take a shorter name.", error)
        return 2
    except Exception as error:  # of any program: tracebacks are shown on request only
        return _unforeseen(error)
    finally:
        warnings.formatwarning = original


_TRACEBACK = "MONOLORA_TRACEBACK"


def _line(message: object) -> str:
    return " ".join(printable(str(message)).split("\n"))


def _say(line: str, error: Exception | None = None) -> None:
    with suppress(OSError):  # where stderr takes nothing, the status has to do
        if error is not None and os.environ.get(_TRACEBACK) == "1":
            print(printable("".join(traceback.format_exception(error))), file=sys.stderr)
        print(printable(line), file=sys.stderr, flush=True)


def _origin(error: Exception) -> str:
    """The innermost line of this project that the error passed through."""
    frames = traceback.walk_tb(error.__traceback__)
    *_, (file, number) = [
        (Path(frame.f_code.co_filename), number)
        for frame, number in frames
        if frame.f_globals["__name__"].startswith("monolora.") or frame.f_globals["__name__"] == "__main__"
    ]
    return f"{file.parent.name}/{file.name}:{number}"


def _unforeseen(error: Exception) -> int:
    _say(f"error: {type(error).__name__}: {in_one_line(error)} ({_origin(error)}; {_TRACEBACK}=1 shows more)", error)
    try:
        sys.stdout.flush()
    except OSError:  # the error may have been that stdout takes nothing; Python would say so again at its end
        _drop_stdout()
    return 1


def _drop_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
