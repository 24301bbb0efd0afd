"""What a program may end with: bad input (exit status 2), a failure (1); each is one line that names the mend."""

from __future__ import annotations

import difflib
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable

from safetensors import SafetensorError

from monolora.redaction import redact, redacted_stderr


class InputError(ValueError):
    """Something the user gave cannot work; the message is one line and names the mend."""


class RunError(RuntimeError):
    """The input was fine and the work failed all the same; the message is one line."""


class SaveError(RunError):
    """Something could not be written: a full disk, lost permissions."""

    @classmethod
    def of(cls, folder: object, error: BaseException, mend: str) -> SaveError:
        """From what the writing library raised, and what to do about it."""
        return cls(f"Cannot save into {folder}: {in_one_line(error)} {mend}")


def is_disk_trouble(error: Exception) -> bool:
    """Whether this is what a library raises when the disk does not take a file."""
    # torch.save raises a bare RuntimeError, the tokenizers library a bare Exception.
    return isinstance(error, (OSError, SafetensorError, RuntimeError)) or type(error) is Exception


def unknown(what: str, given: str, choices: Iterable[str]) -> InputError:
    """An :class:`InputError` for a name that is none of ``choices``, with the nearest of them."""
    options = list(choices)
    near = difflib.get_close_matches(given, options, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return InputError(f"Unknown {what} {given!r}; choose one of {', '.join(options)}.{hint}")


def in_one_line(error: BaseException) -> str:
    """A library's message as one sentence on one line, 300 characters of it at most, without secrets."""
    text = textwrap.shorten(redact(str(error)) or type(error).__name__, 300, placeholder=" …").rstrip(" .:")
    return text if text.endswith(("?", "!", "…")) else f"{text}."


@redacted_stderr()
def exit_status(program: Callable[[], int]) -> int:
    """Run a program; what it raises for the user, and each warning, becomes one line on stderr.

    Returns:
        The exit status: the program's own, 1 for a failure, 2 for bad input, 130 after Ctrl-C, 141 where the reader
        of the output went away (as in ``monolora … | head``).
    """
    shown, warnings.formatwarning = warnings.formatwarning, lambda message, *_, **__: f"warning: {message}\n"
    try:
        status = program()
        sys.stdout.flush()
        return status
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (BrokenPipeError, SystemExit) as error:
        # rich turns a broken pipe into an exit of its own
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    finally:
        warnings.formatwarning = shown
