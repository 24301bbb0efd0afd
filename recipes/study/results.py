"""The results of an evaluation, by adapter, seed and prompt.

Shapes: S seeds, P prompts (1 for a column that is no mean over prompts, as sparsity).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monolora.eval import run as runs
from monolora.eval.measures.table import BOOTSTRAP, PERCENT, Column
from monolora.random_effects import SeedEffects, crossed, of_difference, of_share, seed_effects
from monolora.recipes.study.plan import row_name, selected_rates, training
from monolora.recipes.study.settings import Study
from monolora.reporting.numbers import NOTHING
from monolora.reporting.tables import Grid
from monolora.run_record import read
from monolora.stats import Estimate

BASE = "base"

Floats = NDArray[np.float64]


class Values(NamedTuple):
    """A column of an evaluation.

    Attributes:
        column: its head.
        weights_P: how many rows of the set each prompt stands for.
        by_model: values of each adapter, ``(S, P)``, and of the base, ``(1, P)``, where it has any; NaN for missing.
    """

    column: Column
    weights_P: Floats
    by_model: Mapping[str, Floats]

    def mean(self, model: str) -> Estimate | None:
        """Over seeds and prompts; None where the model has no value."""
        values_SP = self.by_model.get(model)
        if values_SP is None:
            return None
        estimate = crossed(values_SP, self.weights_P, self._seeds_differ(self._tuned()))
        if estimate is None:
            return None
        if self.are_flags:
            return of_share(estimate)
        estimate = estimate._replace(p=None)  # no measure is tested against 0, and none is below it
        if estimate.interval is None:
            return estimate
        low, high = estimate.interval
        return estimate._replace(low=max(low, 0.0), high=min(high, 100.0 if self.column.unit == PERCENT else np.inf))

    def by_seed(self, model: str) -> Floats:
        """The mean over prompts with a value, of each seed, ``(S,)``."""
        values_SP = self.by_model[model]
        weights_SP = np.where(np.isnan(values_SP), 0.0, self.weights_P)
        means_S: Floats = (np.nan_to_num(values_SP) * weights_SP).sum(1) / weights_SP.sum(1)
        return means_S

    def difference(self, model: str, against: str) -> Estimate | None:
        """The mean of ``model - against``, paired by seed and prompt; the base is the same for all seeds.

        None where they share no prompt.
        """
        ours, theirs = self.by_model.get(model), self.by_model.get(against)
        if ours is None or theirs is None:
            return None
        tuned = self._tuned()
        effects = (
            self._seeds_differ(tuned)  # a base has no seeds
            if BASE in (model, against)
            else self._seeds_differ([one - other for one, other in combinations(tuned, 2)], len(tuned) - 1)
        )
        estimate = crossed(ours - theirs, self.weights_P, effects)
        return of_difference(estimate) if self.are_flags and estimate is not None else estimate

    @property
    def are_flags(self) -> bool:
        """Whether values are 0 and 100, one a prompt."""
        return (
            self.column.unit == PERCENT
            and self.column.test != BOOTSTRAP  # a mean of shares, which may all be whole
            and len(self.weights_P) > 1
            and all((np.isnan(of) | (of == 0) | (of == 100)).all() for of in self.by_model.values())
        )

    def _tuned(self) -> list[Floats]:
        return [values for model, values in self.by_model.items() if model != BASE and _any_whole(values)]

    def _seeds_differ(self, tables: Sequence[Floats], independent: int | None = None) -> SeedEffects:
        return seed_effects(tables, self.weights_P, independent)


def _any_whole(values_SP: Floats) -> bool:
    """Whether any prompt has a value for all seeds."""
    return bool((~np.isnan(values_SP).any(0)).any())


def of_dataset(study: Study, dataset: str) -> list[Values]:
    """All columns of a data set: its evaluation's, and what its trainings took if the study asks for it.

    Raises:
        InputError: if a record is missing or damaged.
    """
    table = runs.table(study.folder / dataset / "eval")
    rows = table.values.merge(_seeds(study, table.models[0].name), left_on="model", right_on="row")
    columns = [_values(column, rows[rows["column"] == column.id]) for column in table.columns]
    return [*columns, _seconds(study, dataset)] if study.seconds else columns


_SECONDS = Column(
    metric="seconds",
    set="training",
    aspect="cost",
    title="training",
    group="",
    description="of a training's steps, on the machine that ran it, without what comes before and after them",
    unit="seconds",
    better="lower",
    of_base=False,
)


def _seconds(study: Study, dataset: str) -> Values:
    """The seconds of each training at the selected rate."""
    by_adapter = {}
    for adapter, rate in selected_rates(study, dataset).items():
        folders = [training(study, dataset, adapter, rate, seed).folder for seed in study.seeds]
        records: list[Mapping[str, Any]] = [read(folder) or {} for folder in folders]
        by_adapter[adapter] = np.array([[record["results"]["seconds"]["train"]] for record in records])
    return Values(_SECONDS, np.ones(1), by_adapter)


def _seeds(study: Study, base: str) -> pd.DataFrame:
    """Adapter and seed of each row of an evaluation, in the study's order."""
    tuned = [(row_name(adapter, seed), adapter, seed) for adapter, seed in product(study.adapters, study.seeds)]
    return pd.DataFrame([(base, BASE, 0), *tuned], columns=["row", "adapter", "seed"])


def _values(column: Column, rows: pd.DataFrame) -> Values:
    """A column from the tidy rows of base and adapters, with their seeds."""
    by_model = {}
    for adapter, own in rows.groupby("adapter", sort=False):
        if adapter != BASE or column.of_base:
            # each seed has all prompts, in the set's order
            by_model[str(adapter)] = np.stack([of_seed["value"] for _, of_seed in own.groupby("seed")])
    first = rows[rows["row"] == rows["row"].iloc[0]]
    return Values(column, first["weight"].to_numpy(np.float64), by_model)


def definitions(study: Study, by_dataset: Mapping[str, Sequence[Values]]) -> Grid:
    """The glossary, one row a column: meaning, prompts of each evaluation, and source of its intervals."""
    columns: dict[tuple[str, str, str], dict[str, Values]] = {}
    for dataset, of in by_dataset.items():
        for values in of:
            column = values.column
            name = "task" if column.set == f"task:{dataset}" else column.set
            columns.setdefault((name, column.judge, column.metric), {})[dataset] = values
    rows = []
    for of_datasets in columns.values():
        column = next(iter(of_datasets.values())).column
        counts = {dataset: len(values.weights_P) for dataset, values in of_datasets.items()}
        sets = ", ".join(dict.fromkeys(values.column.set for values in of_datasets.values()))
        rows.append([column.title, sets, column.description, _prompts(counts), _over(study, max(counts.values()))])
    return Grid(["column", "of", "what it is", "prompts", "its intervals are over"], rows)


def _prompts(counts: Mapping[str, int]) -> str:
    if set(counts.values()) == {1}:
        return NOTHING
    if len(set(counts.values())) == 1:
        return str(next(iter(counts.values())))
    return ", ".join(f"{count} ({dataset})" for dataset, count in counts.items())


def _over(study: Study, prompts: int) -> str:
    if len(study.seeds) == 1:
        return "nothing: one run" if prompts == 1 else "prompts"
    return "seeds" if prompts == 1 else "seeds and prompts (the base's: prompts)"
