"""Several calls at a time, each in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue


def at_once(calls: Iterable[Callable[[], None]], jobs: int) -> None:
    """Make all calls, up to ``jobs`` at a time; with one, here and in order.

    The threads are daemons: where this raises, no further call is made, and those under way end with the program.

    Args:
        calls: in the order in which they are begun.
        jobs: how many at a time; 1 or more.

    Raises:
        Exception: what the first call that failed raised.
    """
    if jobs == 1:
        for call in calls:
            call()
        return
    waiting, taking, stopped = iter(calls), threading.Lock(), threading.Event()
    ended: SimpleQueue[Exception | None] = SimpleQueue()

    def work() -> None:
        try:
            while not stopped.is_set():
                with taking:
                    call = next(waiting, None)
                if call is None:
                    break
                call()
        except Exception as error:
            ended.put(error)
        else:
            ended.put(None)

    for _ in range(jobs):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(jobs):
            error = ended.get()
            if error is not None:
                raise error
    finally:
        stopped.set()
