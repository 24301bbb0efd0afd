"""Selection of the learning rate at which an adapter is compared: the lowest loss on held-out training examples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from monolora.errors import InputError
from monolora.recipes.study.plan import training
from monolora.recipes.study.settings import Study
from monolora.run_record import read


class SelectedRate(NamedTuple):
    """The learning rate selected for an adapter.

    Attributes:
        rate: with the lowest loss; among equal ones, the smallest.
        losses: by rate, in nats per token, on examples that are used neither for training nor for testing; infinite if
            the training diverged.
        is_edge: whether it is the smallest or largest rate of the sweep, so that a rate beyond it may be better.
    """

    rate: float
    losses: Mapping[float, float]
    is_edge: bool


def select_rate(study: Study, dataset: str, adapter: str) -> SelectedRate:
    """The rate of an adapter on a data set, from the trainings of the sweep.

    Raises:
        InputError: if a training did not measure the loss, or all of them diverged.
    """
    losses = {}
    for rate in sorted(study.learning_rates):
        folder = training(study, dataset, adapter, rate, study.seeds[0]).folder
        record: Mapping[str, Any] = read(folder) or {}
        if record.get("status") == "running":  # all cells of the sweep are done, so this training diverged
            losses[rate] = math.inf
            continue
        validation = record.get("results", {}).get("validation")
        if validation is None:
            raise InputError(f"{folder} has no validation loss. Set validation_samples below sft in the study's file.")
        losses[rate] = float(validation["loss"])
    best = min(losses, key=lambda rate: (losses[rate], rate))
    if losses[best] == math.inf:
        raise InputError(f"{adapter} diverged on {dataset} at every learning rate. Add lower ones to the study's file.")
    return SelectedRate(best, losses, len(losses) > 1 and best in (min(losses), max(losses)))


def selected_rates(study: Study, dataset: str) -> dict[str, float]:
    """The rates of all adapters on a data set."""
    return {adapter: select_rate(study, dataset, adapter).rate for adapter in study.adapters}
