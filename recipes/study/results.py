"""What an evaluation measured, by adapter, seed and prompt.

Shapes: S seeds, P prompts (1 for what is no mean over prompts, as sparsity).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolora.eval import run as runs
from monolora.eval.measures.columns import PERCENT, Column, Measured, Whole, weights
from monolora.eval.measures.verdicts import POLICIES
from monolora.random_effects import Estimate, SeedEffects, crossed, of_difference, of_share, seed_effects
from monolora.recipes.study.plan import row_name
from monolora.recipes.study.settings import Study
from monolora.reporting.numbers import NOTHING
from monolora.reporting.tables import piped

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
        if values_SP is None or not _any_whole(values_SP):
            return None
        found = crossed(values_SP, self.weights_P, self._seeds_differ(self._tuned()))
        if self.are_flags:
            return of_share(found)
        highest = 100.0 if self.column.unit == PERCENT else np.inf
        # no measure is below 0, and none is asked whether it is 0
        return found._replace(low=max(found.low, 0.0), high=min(found.high, highest), p=np.nan)

    def difference(self, model: str, against: str) -> Estimate | None:
        """The mean of ``model - against``, paired by seed and prompt; the base is the same for all seeds.

        None where they share no prompt.
        """
        ours, theirs = self.by_model.get(model), self.by_model.get(against)
        if ours is None or theirs is None or not _any_whole(ours - theirs):
            return None
        tuned = self._tuned()
        effects = (
            self._seeds_differ(tuned)  # a base has no seeds
            if BASE in (model, against)
            else self._seeds_differ([one - other for one, other in combinations(tuned, 2)], len(tuned) - 1)
        )
        found = crossed(ours - theirs, self.weights_P, effects)
        return of_difference(found) if self.are_flags else found

    @property
    def are_flags(self) -> bool:
        """Whether values are 0 and 100, one a prompt."""
        return (
            self.column.unit == PERCENT
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


# by how an id ends; the first that fits
_BY_END = {
    "sparsity/alignment": "zeros among the adapter's hidden units on tokens of the safety prompts",
    "sparsity/task": "zeros among the adapter's hidden units on tokens of the task's prompts",
    "/refusal/flagged": "answers with a phrase of refusal, of all prompts of the set",
    "/over-refusal": "answers with a phrase of refusal, of prompts that are harmless",
    "/refusal": "answers with a phrase of refusal, of prompts that are not",
    "/flagged": "answers that the judge calls unsafe",
    "/average": "mean of the four policies' probabilities, times 100",
    "/accuracy": "answers whose first word is the label",
    "/unparsed": "answers whose first word is no label",
    "/rougeL": "ROUGE-L F1 against the reference, times 100",
    "/drift": "KL(base ‖ model) a token, along the base's own answers to the first prompts of the set",
    "/length": "of answers, in tokens of the model",
    "/empty": "answers without text",
    **{f"/{policy}": "mean probability of the policy, times 100" for policy in POLICIES},
}


def definitions(study: Study, by_dataset: Mapping[str, Sequence[Values]]) -> str:
    """A row a column: what it is, over how many prompts of each evaluation, and over what its intervals are."""
    found: dict[str, dict[str, Values]] = {}
    for dataset, columns in by_dataset.items():
        for each in columns:
            found.setdefault(each.column.id.replace(f"task:{dataset}", "task"), {})[dataset] = each
    rows = []
    for name, of_datasets in found.items():
        column = next(iter(of_datasets.values())).column
        counts = {dataset: len(each.weights_P) for dataset, each in of_datasets.items()}
        text = next((text for end, text in _BY_END.items() if name.endswith(end)), NOTHING)
        rows.append([column.title, ", ".join(dict.fromkeys(each.column.set for each in of_datasets.values())), text,
                     _prompts(counts), _over(study, max(counts.values()))])  # fmt: skip
    return piped(["column", "of", "what it is", "prompts", "its intervals are over"], rows)


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
