"""What an evaluation measured, by adapter, seed and prompt.

Shapes: S seeds, P prompts (1 for what is no mean over prompts, as sparsity).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolora.eval import run as runs
from monolora.eval.measures.columns import Column, Measured, Whole, weights
from monolora.eval.measures.hypotheses import wilson
from monolora.recipes.studies.cells import row_name
from monolora.recipes.studies.crossed import Estimate, crossed
from monolora.recipes.studies.settings import Study

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
        if values_SP is None or np.isnan(values_SP).all():
            return None
        return self._with_interval(crossed(values_SP, self.weights_P), (0, 100))

    def difference(self, model: str, against: str) -> Estimate | None:
        """The mean of ``model - against``, paired by seed and prompt; the base is the same for all seeds."""
        ours, theirs = self.by_model.get(model), self.by_model.get(against)
        if ours is None or theirs is None or np.isnan(ours - theirs).all():
            return None
        return self._with_interval(crossed(ours - theirs, self.weights_P), (-100, 100))

    def _with_interval(self, found: Estimate, bounds: tuple[float, float]) -> Estimate:
        """Flags that are the same for all seeds and prompts have no variance, and an interval all the same: Wilson's.

        Seeds are not counted: it is that of so many prompts. A difference has the p-value of McNemar's exact test.
        """
        if self.column.unit != "%" or found.prompts < 2 or not np.isnan(found.low):
            return found
        others = 100 * wilson(0, found.prompts).high  # at most so many prompts would be otherwise
        low, high = np.clip([found.mean - others, found.mean + others], *bounds)
        return found._replace(
            low=float(low), high=float(high), p=1.0 if found.mean == 0 else 2.0 ** (1 - found.prompts)
        )


def of_dataset(study: Study, dataset: str) -> list[Values]:
    """All columns of a data set's evaluation.

    Raises:
        InputError: if it is not there, or damaged.
    """
    models, columns = runs.columns(study.folder / dataset / "eval")
    place = {model.name: number for number, model in enumerate(models)}
    rows = {adapter: [place[row_name(adapter, seed)] for seed in study.seeds] for adapter in study.adapters}
    return [_values(each, {BASE: [0]} | rows, [model.name for model in models]) for each in columns]


def _values(found: Measured | Whole, rows: Mapping[str, list[int]], names: list[str]) -> Values:
    if isinstance(found, Measured):
        values_MP, weights_P = found.values, weights(found.prompts)
    else:
        cells = [found.cells.get(name) for name in names]
        alone = [np.nan if cell is None or cell["value"] is None else cell["value"] for cell in cells]
        values_MP, weights_P = np.array(alone, np.float64)[:, None], np.ones(1)
    own = {model: values_MP[places] for model, places in rows.items() if model != BASE or found.column.of_base}
    return Values(found.column, weights_P, own)
