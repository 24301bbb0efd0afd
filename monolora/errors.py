"""Bad input, as opposed to a bug or a failure: one line that says what is wrong and the mend, exit status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot work; the message is one line and names the mend."""


class SaveError(RuntimeError):
    """Something could not be written, though the input was fine: a full disk, lost permissions."""

    @classmethod
    def of(cls, folder: object, error: BaseException) -> SaveError:
        """From what the writing library raised."""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return cls(
            f"Cannot save into {folder}: {reason}. Earlier checkpoints are whole; free space, then go on with "
            "--resume-from-checkpoint."
        )


def unknown(what: str, given: str, choices: Iterable[str]) -> InputError:
    """An :class:`InputError` for a name that is none of ``choices``, with the nearest of them."""
    options = list(choices)
    near = difflib.get_close_matches(given, options, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return InputError(f"Unknown {what} {given!r}; choose one of {', '.join(options)}.{hint}")
