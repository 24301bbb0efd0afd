"""What ``--dataset`` and TRL's list ``datasets`` say of a mixture: its data sets, and their shares."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monolora import hub
from monolora.data.tasks import BUILT_IN
from monolora.errors import InputError, unknown


class Component(NamedTuple):
    """A data set of a mixture, as in TRL's ``DatasetConfig``.

    Attributes:
        path: a built-in task, hub id, folder or file.
        name: its configuration.
        split: that is trained on.
        columns: those of which it consists; empty for all.
        fraction: its share of the mixture, relative to those of the others; None if no data set has one.
    """

    path: str
    name: str | None = None
    split: str = "train"
    columns: tuple[str, ...] = ()
    fraction: float | None = None

    @property
    def key(self) -> tuple[str, str | None, str]:
        """Equal for two components of the same rows."""
        local = None if self.path in BUILT_IN else hub.local_path(self.path)
        return (self.path if local is None else str(Path(local).resolve()), self.name, self.split)


_IGNORED_HERE = {
    "data_dir": "give the folder as its path",
    "data_files": "give the file as its path",
}


def split_share(word: str) -> Component:
    """``NAME`` or ``NAME:SHARE``: a share is a number after the last colon, so paths and ids may have colons.

    Raises:
        InputError: if the share is no number above 0, or a file has the whole word for its name.
    """
    name, colon, number = word.rpartition(":")
    share = _number(number) if colon and name else None
    if share is None:
        if not hub.is_local(word) and (name in BUILT_IN or (name and hub.is_local(name))):
            raise InputError(f"--dataset {word}: a share is a number, as in {name}:0.5, and {number!r} is none.")
        return Component(word)
    if hub.is_local(word):
        raise InputError(
            f"--dataset {word}: there is a file of this name, and a number after a colon is a share. Rename the file."
        )
    return Component(name, fraction=_checked_share(share, f"--dataset {word}"))


def _number(text: str) -> float | None:
    try:
        return float(text) if re.fullmatch(r"\S+", text) else None
    except ValueError:
        return None


def _checked_share(value: float, where: str) -> float:
    if not 0 < value < math.inf:
        raise InputError(f"{where}: a share must be a number above 0, got {value}.")
    return value


def from_words(words: Sequence[str]) -> list[Component]:
    """The components that ``--dataset`` names.

    Raises:
        InputError: as :func:`split_share` and :func:`check`, and for a share of a single data set.
    """
    components = [split_share(word) for word in words]
    if len(components) == 1 and components[0].fraction is not None:
        raise InputError(f"--dataset {words[0]}: a share is of a mixture, and this is the only data set. Leave it out.")
    check(components)
    return components


def from_settings(values: Any, where: str) -> list[Component]:
    """The components in TRL's list ``datasets`` of a YAML file.

    Raises:
        InputError: for what is no such list, fields that have no meaning here, and as :func:`check`.
    """
    if not isinstance(values, list) or not values or not all(isinstance(value, Mapping) for value in values):
        raise InputError(f"{where}: datasets must be a list of mappings with a path, as in TRL.")
    components = [_component(value, f"{where}: datasets, entry {n}") for n, value in enumerate(values, start=1)]
    check(components)
    return components


def _component(value: Mapping[str, Any], where: str) -> Component:
    values = {str(key): part for key, part in value.items() if part is not None}
    for key in values:
        if key in _IGNORED_HERE:
            raise InputError(f"{where}: {key} has no effect here; {_IGNORED_HERE[key]}.")
        if key not in Component._fields:
            raise unknown(f"field in {where},", key, Component._fields)
    for key in ("path", "name", "split"):
        if not isinstance(values.get(key, ""), str):
            raise InputError(f"{where}: {key} must be a text, got {values[key]!r}.")
    if not values.get("path"):
        raise InputError(f"{where}: path is missing, the name of a data set.")
    columns = values.get("columns", [])
    if not isinstance(columns, list | tuple) or not all(isinstance(column, str) for column in columns):
        raise InputError(f"{where}: columns must be a list of names, got {columns!r}.")
    fraction = values.get("fraction")
    if fraction is not None:
        if isinstance(fraction, bool) or not isinstance(fraction, int | float):
            raise InputError(f"{where}: fraction must be a number, got {fraction!r}.")
        _checked_share(fraction, where)
    return Component(**{**values, "columns": tuple(columns)})


def check(components: Sequence[Component]) -> None:
    """Check that no data set is named twice, and that all or none have a share.

    Raises:
        InputError: naming the data set.
    """
    keys: dict[tuple[str, str | None, str], Component] = {}
    for component in components:
        if (other := keys.setdefault(component.key, component)) is not component:
            raise InputError(
                f"--dataset {component.path} is named twice"
                + ("" if other.path == component.path else f", as {other.path}")
                + ". Name it once; more passes over the data are --num-train-epochs."
            )
    without = [component.path for component in components if component.fraction is None]
    if 0 < len(without) < len(components):
        number = without[0].rpartition(":")[2] if ":" in without[0] else ""
        why = f" ({number!r} is no number)" if number else ""
        raise InputError(
            f"--dataset {without[0]} has no share{why}, and others have one. Give all data sets a share, as in "
            "NAME:0.5, or none."
        )


def as_settings(components: Sequence[Component]) -> list[dict[str, Any]]:
    """The components as TRL's list ``datasets``, for a run's record."""
    return [{**component._asdict(), "columns": list(component.columns) or None} for component in components]
