"""The tasks a recipe can train on: one file each."""

from __future__ import annotations

from collections.abc import Callable

from monolora.data import custom
from monolora.data.task import Example, Task
from monolora.data.tasks import demo, dolly, sst2
from monolora.errors import InputError

BUILT_IN: dict[str, Callable[[], Task]] = {"demo": demo.load, "sst2": sst2.load, "dolly": dolly.load}

__all__ = ["BUILT_IN", "Example", "Task", "load_task"]


def load_task(name: str, source: custom.Source, most: custom.Most = custom.Most()) -> Task:  # noqa: B008
    """A built-in task by name, or any data set (see :mod:`monolora.data.custom`).

    Args:
        name: of either.
        source: where in a data set to look.
        most: how many examples of a data set are wanted; a built-in task is read as a whole.

    Raises:
        InputError: if the data set cannot be found, is empty, or lacks the columns that are needed.
    """
    if name not in BUILT_IN:
        return custom.load(name, source, most=most)
    if source != custom.Source():
        raise InputError(
            f"--dataset {name} has its own splits and columns. Leave --dataset-config, --dataset-…-split, "
            "--drop-columns and --allow-empty-answers out."
        )
    return BUILT_IN[name]()
