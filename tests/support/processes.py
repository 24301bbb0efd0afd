"""Other processes of a test."""

from __future__ import annotations

import os
import signal
from contextlib import suppress


def kill(process: int) -> None:
    """As ``kill -9`` does."""
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
