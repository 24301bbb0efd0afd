"""The built-in tasks, one file each.

To add one, put a module here with ``load() -> Task``: its name is the task's, for ``--dataset``, ``task:NAME`` and
every table; its scorer says what is measured.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from monolora.data import task
from monolora.data.example import Example
from monolora.data.task import Task
from monolora.errors import InputError


def _loaders() -> dict[str, Callable[[], Task]]:
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return {name: importlib.import_module(f"{__name__}.{name}").load for name in names}


BUILT_IN = _loaders()

__all__ = ["BUILT_IN", "Example", "Task", "load_task"]


def load_task(name: str, source: task.Source, limits: task.SampleLimits = task.NO_LIMITS) -> Task:
    """A built-in task by name, or any data set (see :mod:`monolora.data.task`).

    Args:
        name: of either.
        source: where in a data set to look.
        limits: how many examples of a data set are wanted; a built-in task is read as a whole.

    Raises:
        InputError: if the data set cannot be found, is empty, or lacks the columns that are needed.
    """
    if name not in BUILT_IN:
        return task.dataset_task(name, source, limits=limits)
    if source._replace(train_on=task.ALL) != task.Source():  # a row has one answer
        raise InputError(
            f"--dataset {name} has its own splits and columns, and no empty answers. Leave the flags for these out."
        )
    return BUILT_IN[name]()
