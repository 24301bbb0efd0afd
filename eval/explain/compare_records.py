"""The parts of a comparison of adapters, from which page, terminal output and ``comparison.json`` are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NotRequired

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyarrow import ArrowException, parquet
from safetensors import SafetensorError
from typing_extensions import TypedDict

from monolora.errors import InputError, in_one_line
from monolora.eval.explain.records import Score
from monolora.eval.explain.stability import ACTIVATIONS, Activations, Stability, load_samples
from monolora.files import read_json, type_problem
from monolora.stats import Estimate

Floats = NDArray[np.float64]


class Adapter(NamedTuple):
    """One of the compared adapters.

    Attributes:
        name: given to it for the comparison.
        folder: of its explanation.
        adapter: its own folder.
        method: ``MonoLoRA`` or ``LoRA``.
        model: the base.
        units: how many.
        modules: how many adapted modules have them.
    """

    name: str
    folder: str
    adapter: str
    method: str
    model: str
    units: int
    modules: int


class Mean(NamedTuple):
    """An adapter's mean over its units.

    Attributes:
        value: the mean; None where no unit has a value.
        low, high: ends of its 95 % confidence interval; None where there is none.
        features: units with a value that it is of; an end of a signed unit counts as one where both are measured.
        modules: how many modules these are in.
        total: how many there are, with a value or without.
    """

    value: float | None
    low: float | None
    high: float | None
    features: int
    modules: int
    total: int


class Difference(NamedTuple):
    """``adapter`` minus ``against``.

    Attributes:
        adapter, against: names.
        value, low, high: the difference of the means, with its 95 % confidence interval; None where there is none.
        p: two-sided, of no difference; None where it cannot be tested.
        p_holm: corrected for all tests of the comparison (Holm).
        pairs: modules that have a value for both adapters, which are drawn together.
    """

    adapter: str
    against: str
    value: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure on one data set.

    Attributes:
        id: as ``sparsity``.
        title: for people.
        unit: as ``%`` or ``bits``; may be empty.
        chance: its value by chance; None where unknown.
        means: by adapter.
        differences: of each adapter and every one before it; empty where nothing is tested.
        values: by adapter, those of its units if their distribution is shown; NaN for none.
    """

    id: str
    title: str
    unit: str
    chance: float | None
    means: Mapping[str, Mean]
    differences: list[Difference]
    values: Mapping[str, Floats]


@dataclass(frozen=True, kw_only=True)
class DatasetRows:
    """The measures on one data set.

    Attributes:
        name, fingerprint: of the data set.
        texts: how many.
        tokens: by adapter, how many were counted.
        strongest: of how many texts the consistency of the strongest is.
        rows: one a measure.
    """

    name: str
    fingerprint: str
    texts: int
    tokens: Mapping[str, int]
    strongest: int
    rows: list[Row]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of adapters.

    Attributes:
        adapters: the first is the reference.
        datasets: those that all adapters were explained on.
        left_out: names of the data sets that only some were.
        tests: their number, for Holm's correction.
        resamples, seed: of the bootstrap.
        scores: of each adapter's units on these data sets, by its name; none for one that was not scored.
        stability: of each two adapters on each of them, where both have activations on the same tokens.
    """

    adapters: list[Adapter]
    datasets: list[DatasetRows]
    left_out: list[str]
    tests: int
    resamples: int
    seed: int
    scores: Mapping[str, list[Score]] = field(default_factory=dict)
    stability: list[Stability] = field(default_factory=list)


FEATURES, RUN = "features.parquet", "run.json"
_COLUMNS = ("firing_rate", "effect", "consistency", "strongest_consistency", "information", "information_q")
_OF_SIGNED = ("lowest_consistency",)
_ALIKE = ("texts", "strongest")


class _Dataset(TypedDict):
    """The fields of a data set's record that a comparison reads."""

    name: str
    fingerprint: str
    tokens: int
    texts: int
    strongest: int
    chance: Any


class _Score(TypedDict):
    """The fields of a score."""

    kind: str
    dataset: str
    of: str
    units: int | None
    share: float
    texts: int
    own: dict[str, float | None] | None
    random: dict[str, float | None] | None
    difference: dict[str, float | None] | None


class _Record(TypedDict):
    """The fields of an explanation's record that a comparison reads."""

    adapter: str
    model: str
    method: Any
    datasets: list[_Dataset]
    scores: NotRequired[list[_Score]]


@dataclass(frozen=True, kw_only=True)
class Features:
    """One adapter's folder.

    Attributes:
        name: of the adapter in the comparison.
        folder: its path.
        run: the content of ``run.json``.
        units: the compared columns of ``features.parquet``, a row a unit.
        activations: on some tokens, by data set; empty if it was not scored.
    """

    name: str
    folder: Path
    run: Mapping[str, Any]
    units: pd.DataFrame
    activations: Mapping[str, Activations]

    @property
    def scores(self) -> list[Score]:
        """The run's scores."""
        return [
            Score(
                *(record[key] for key in ("kind", "dataset", "of", "units", "share", "texts")),
                *(None if record[key] is None else Estimate(**record[key]) for key in ("own", "random", "difference")),
            )
            for record in self.run.get("scores", ())
        ]

    @property
    def datasets(self) -> dict[tuple[str, str], Mapping[str, Any]]:
        """The run's records of its data sets, by name and fingerprint."""
        return {(dataset["name"], dataset["fingerprint"]): dataset for dataset in self.run["datasets"]}

    def on(self, dataset: str) -> pd.DataFrame:
        """Module and measures of each unit on one data set, its name removed from the columns.

        Raises:
            InputError: if there are columns missing.
        """
        names = {f"{dataset}.{measure}": measure for measure in (*_COLUMNS, *_OF_SIGNED)}
        own = self.units.filter(items=["module", *names]).rename(columns=names)
        for column, measure in names.items():
            if measure not in own and measure not in _OF_SIGNED:
                raise InputError(f"{self.folder / FEATURES} has no column {column}. {_again(self.folder)}")
        return own


def read(name: str, folder: Path) -> Features:
    """Read a folder.

    Raises:
        InputError: if it is no complete output of ``monolora explain``.
    """
    for file in (FEATURES, RUN):
        if not (folder / file).is_file():
            raise InputError(f"{name}: {folder} has no {file}. Give the folder that monolora explain wrote.")
    with _readable(name, folder):
        run = read_json(folder / RUN, "", Any)
        present = parquet.read_schema(folder / FEATURES).names
    if problem := type_problem(run, _Record):
        raise InputError(f"{folder / RUN} is no record of monolora explain: {problem} {_again(folder)}")
    with _readable(name, folder):
        units = pd.read_parquet(folder / FEATURES, columns=_compared(present, run["datasets"]))
    if "module" not in units or units.empty:
        raise InputError(f"{folder / FEATURES} has no units. {_again(folder)}")
    with _readable(name, folder):
        activations = load_samples(folder / ACTIVATIONS)
    return Features(name=name, folder=folder, run=run, units=units, activations=activations)


@contextmanager
def _readable(name: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, ArrowException, SafetensorError) as error:
        raise InputError(f"{name}: {folder} cannot be read: {in_one_line(error)} {_again(folder)}") from error


def common_datasets(all_features: Sequence[Features]) -> list[tuple[str, str]]:
    """Name and fingerprint of the data sets that all adapters were explained on, in the first one's order.

    Raises:
        InputError: if there is none, or one was read with different settings.
    """
    common = [key for key in all_features[0].datasets if all(key in features.datasets for features in all_features)]
    if not common:
        names = "; ".join(
            f"{features.name} has {', '.join(name for name, _ in features.datasets) or 'none'}"
            for features in all_features
        )
        raise InputError(
            f"The folders have no data set in common, of one name and the same texts: {names}. "
            "Run monolora explain on all adapters with the same data sets."
        )
    for key in common:
        for what in _ALIKE:
            counts = {features.name: features.datasets[key][what] for features in all_features}
            if len(set(counts.values())) > 1:
                raise InputError(
                    f"{key[0]} was explained with different numbers of {what} texts: "
                    f"{', '.join(f'{name} {count}' for name, count in counts.items())}. "
                    "Run monolora explain on all adapters with the same settings."
                )
    return common


def _compared(columns: Sequence[str], datasets: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that a comparison needs; others hold texts and are far larger."""
    measures = {f"{dataset['name']}.{measure}" for dataset in datasets for measure in (*_COLUMNS, *_OF_SIGNED)}
    return [column for column in columns if column in ("module", "index") or column in measures]


def _again(folder: Path) -> str:
    return f"Run monolora explain --out {folder} again."
