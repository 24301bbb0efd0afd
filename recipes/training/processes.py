"""What only one of the processes of a launch may do, such as locking a folder for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from monolora.errors import InputError

_T = TypeVar("_T")


def on_main_process(action: Callable[[], _T]) -> _T | None:
    """Do something in the main process; what is refused there ends all processes.

    Returns:
        What it gives; None in the other processes.

    Raises:
        InputError: in all of them.
    """
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
