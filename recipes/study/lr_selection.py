"""Which learning rate each adapter is compared at: the one with the lowest loss on held-out training examples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from monolora.errors import InputError
from monolora.recipes.study.plan import training
from monolora.recipes.study.settings import Study
from monolora.run_record import read


class Chosen(NamedTuple):
    """A learning rate, and what it was chosen from.

    Attributes:
        rate: with the lowest loss; of equal ones, the smallest.
        losses: by rate, in nats a token, on examples that are neither trained on nor tested; infinite if it diverged.
        is_edge: whether it is the smallest or largest that was tried, so that another might be better.
    """

    rate: float
    losses: Mapping[float, float]
    is_edge: bool


def chosen(study: Study, dataset: str, adapter: str) -> Chosen:
    """The rate of an adapter on a data set, from the runs of the sweep.

    Raises:
        InputError: if a run did not measure the loss.
    """
    losses = {}
    for rate in sorted(study.learning_rates):
        folder = training(study, dataset, adapter, rate, study.seeds[0]).folder
        record: Mapping[str, Any] = read(folder) or {}
        if record.get("status") == "running":  # it ended there: with this rate the training diverged
            losses[rate] = math.inf
            continue
        validation = record.get("results", {}).get("validation")
        if validation is None:
            raise InputError(f"{folder} has no validation loss. Set validation_samples below sft in the study's file.")
        losses[rate] = float(validation["loss"])
    best = min(losses, key=lambda rate: (losses[rate], rate))
    if losses[best] == math.inf:
        raise InputError(f"{adapter} diverged on {dataset} at every learning rate. Add lower ones to the study's file.")
    return Chosen(best, losses, len(losses) > 1 and best in (min(losses), max(losses)))


def rates(study: Study, dataset: str) -> dict[str, float]:
    """Of all adapters."""
    return {adapter: chosen(study, dataset, adapter).rate for adapter in study.adapters}
