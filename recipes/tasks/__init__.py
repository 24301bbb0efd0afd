"""The tasks a recipe can train on: one file each."""

from __future__ import annotations

from collections.abc import Callable

from monolora.errors import InputError
from monolora.recipes.tasks import custom, demo, dolly, sst2
from monolora.recipes.tasks.base import Example, Task

BUILT_IN: dict[str, Callable[[], Task]] = {"demo": demo.load, "sst2": sst2.load, "dolly": dolly.load}

__all__ = ["BUILT_IN", "Example", "Task", "load_task"]


def load_task(name: str, source: custom.Source) -> Task:
    """A built-in task by name, or any data set (see :mod:`monolora.recipes.tasks.custom`).

    Raises:
        InputError: if the data set cannot be found, is empty, or lacks the columns that are needed.
    """
    if name not in BUILT_IN:
        return custom.load(name, source)
    if source != custom.Source():
        raise InputError(f"--dataset {name} has its own splits. Leave --dataset-config and --dataset-…-split out.")
    return BUILT_IN[name]()
