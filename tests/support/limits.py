"""How long the tests wait for other processes and threads, and how much of a CPU some work may take."""

from __future__ import annotations

import time
from collections.abc import Callable

# For what has hung, and for nothing else: what is waited for comes in seconds, and on a machine that others use in
# minutes. No test measures speed by it. It is shorter than pytest's own limit for a test, so that a wait can say what
# it waited for, and shows what the other process printed.
HANG_S = 1500

_REFERENCE_S = 0.1  # what _reference takes of a CPU of 2.6 GHz


def cpu_seconds(work: Callable[[], object]) -> float:
    """What ``work`` takes of a CPU: no more on a busy machine, nor, in these seconds, on a slow one."""
    return _taken(work) / slowness()


def slowness() -> float:
    """How many times slower this machine is than that of the limits; 1 where it is faster."""
    return max(1.0, _taken(_reference) / _REFERENCE_S)


def _reference() -> object:
    return sorted(str(number) for number in range(600_000))


def _taken(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
