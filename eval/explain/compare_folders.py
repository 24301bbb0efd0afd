"""Reading what ``monolora explain`` wrote of several adapters, and which data sets they have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow import ArrowException, parquet

from monolora.errors import InputError, in_one_line

FEATURES, RUN = "features.parquet", "run.json"
_COLUMNS = ("firing_rate", "effect", "consistency", "strongest_consistency", "information", "information_q")
_OF_SIGNED = ("lowest_consistency",)
_ALIKE = ("texts", "strongest")
_RUN_KEYS = {"adapter", "datasets", "method", "model"}
_DATASET_KEYS = {"chance", "fingerprint", "name", "tokens", *_ALIKE}


@dataclass(frozen=True, kw_only=True)
class Features:
    """One adapter's folder.

    Attributes:
        name: of the adapter in the comparison.
        folder: it.
        run: what ``run.json`` holds.
        units: what is compared of ``features.parquet``, a row a unit.
    """

    name: str
    folder: Path
    run: Mapping[str, Any]
    units: pd.DataFrame

    @property
    def datasets(self) -> dict[tuple[str, str], Mapping[str, Any]]:
        """What the run says of its data sets, by name and fingerprint."""
        return {(each["name"], each["fingerprint"]): each for each in self.run["datasets"]}

    def on(self, dataset: str) -> pd.DataFrame:
        """Module and measures of each unit on one data set, its name taken off the columns.

        Raises:
            InputError: if there are columns missing.
        """
        prefix = f"{dataset}."
        own = self.units.filter(items=[column for column in self.units if column.startswith(prefix)])
        for column in _COLUMNS:
            if prefix + column not in own:
                raise InputError(f"{self.folder / FEATURES} has no column {prefix}{column}. {_again(self.folder)}")
        return own.rename(columns=lambda column: column.removeprefix(prefix)).assign(module=self.units["module"])


def read(name: str, folder: Path) -> Features:
    """Read a folder.

    Raises:
        InputError: if it is not one of ``monolora explain``, or not whole.
    """
    for file in (FEATURES, RUN):
        if not (folder / file).is_file():
            raise InputError(f"{name}: {folder} has no {file}. Give the folder that monolora explain wrote.")
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        units = pd.read_parquet(folder / FEATURES, columns=_compared(parquet.read_schema(folder / FEATURES).names))
    except (ValueError, OSError, ArrowException) as error:
        raise InputError(f"{name}: {folder} cannot be read: {in_one_line(error)} {_again(folder)}") from error
    if not (_has(run, _RUN_KEYS) and all(_has(each, _DATASET_KEYS) for each in run["datasets"])):
        raise InputError(f"{folder / RUN} is no record of monolora explain. {_again(folder)}")
    if "module" not in units or units.empty:
        raise InputError(f"{folder / FEATURES} has no units. {_again(folder)}")
    return Features(name=name, folder=folder, run=run, units=units)


def common_datasets(all_features: Sequence[Features]) -> list[tuple[str, str]]:
    """Name and fingerprint of the data sets that all adapters were explained on, in the first one's order.

    Raises:
        InputError: if there is none, or one was not read alike.
    """
    common = [key for key in all_features[0].datasets if all(key in each.datasets for each in all_features)]
    if not common:
        names = "; ".join(
            f"{each.name} has {', '.join(name for name, _ in each.datasets) or 'none'}" for each in all_features
        )
        raise InputError(
            f"The folders have no data set in common, of one name and the same texts: {names}. "
            "Run monolora explain on all adapters with the same data sets."
        )
    for key in common:
        for what in _ALIKE:
            found = {each.name: each.datasets[key][what] for each in all_features}
            if len(set(found.values())) > 1:
                raise InputError(
                    f"{key[0]} was explained with different numbers of {what} texts: "
                    f"{', '.join(f'{name} {count}' for name, count in found.items())}. "
                    "Run monolora explain on all adapters with the same settings."
                )
    return common


def _compared(columns: Sequence[str]) -> list[str]:
    """The columns that a comparison needs; others hold texts, and are larger by far."""
    endings = tuple(f".{column}" for column in (*_COLUMNS, *_OF_SIGNED))
    return [column for column in columns if column == "module" or column.endswith(endings)]


def _has(entry: Any, keys: set[str]) -> bool:
    return isinstance(entry, dict) and keys <= entry.keys()


def _again(folder: Path) -> str:
    return f"Run monolora explain --out {folder} again."
