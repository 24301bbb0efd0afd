"""What a comparison of adapters consists of; the page, the terminal and ``comparison.json`` are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Adapter(NamedTuple):
    """One of those compared.

    Attributes:
        name: given to it for the comparison.
        folder: what ``monolora explain`` wrote of it.
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
    """An adapter's mean over its units, with its 95 % confidence interval (NaN where there is none).

    Attributes:
        value: the mean; NaN where no unit has a value.
        low, high: ends of the interval.
        features: units with a value that it is of; an end of a signed unit counts as one where both are measured.
        modules: how many modules these are in.
        total: how many there are, with a value or without.
    """

    value: float
    low: float
    high: float
    features: int
    modules: int
    total: int


class Difference(NamedTuple):
    """``adapter`` minus ``against``.

    Attributes:
        adapter, against: names.
        value, low, high: the difference of the means, with its 95 % confidence interval (NaN where there is none).
        p: two-sided, of no difference; NaN where it cannot be tested.
        p_holm: corrected for all tests of the comparison (Holm).
        pairs: modules that have a value for both adapters, which are drawn together.
    """

    adapter: str
    against: str
    value: float
    low: float
    high: float
    p: float
    p_holm: float
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure on one data set.

    Attributes:
        id: as ``sparsity``.
        title: for people.
        unit: as ``%`` or ``bits``; may be empty.
        chance: what it would be by chance; NaN where that is not known.
        means: by adapter.
        differences: of each adapter and every one before it; empty where nothing is tested.
        values: by adapter, those of its units, where their distribution is of interest; NaN for none.
    """

    id: str
    title: str
    unit: str
    chance: float
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
    """All of it.

    Attributes:
        adapters: the first is the reference.
        datasets: those that all adapters were explained on.
        left_out: names of the data sets that only some were.
        tests: how many were made, which is what Holm's correction is for.
        resamples, seed: of the bootstrap.
    """

    adapters: list[Adapter]
    datasets: list[DatasetRows]
    left_out: list[str]
    tests: int
    resamples: int
    seed: int
