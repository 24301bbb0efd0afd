"""The column of how far each model is from the base, along the base's own answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from monolora.eval.measures.columns import BOOTSTRAP, Column, Measured
from monolora.eval.measures.gathered import Gathered

Drifts = Mapping[str, Mapping[str, float]]
"""By model name and prompt key: KL(base || model) in nats a token, over the base's answer to the prompt."""


def drift_columns(found: Gathered, drift: Drifts) -> Iterator[Measured]:
    """The mean over prompts, each with its mean over tokens, where it was measured. The base's own is 0, by definition.

    Differences of two models can be tested; that of one from the base is what is shown, and never below 0.
    """
    name, base = found.set.name, found.models[0].name
    asked = {key for by_prompt in drift.values() for key in by_prompt}
    prompts = [prompt for prompt in found.set.prompts if prompt.key in asked]
    column = Column(
        f"{name}/drift", "drift", name, name, better="lower", unit="nats/token", test=BOOTSTRAP, of_base=False
    )
    values = [
        [0.0 if model.name == base else drift.get(model.name, {}).get(prompt.key, np.nan) for prompt in prompts]
        for model in found.models
    ]
    yield Measured(column, prompts, np.array(values, np.float64).reshape(len(found.models), len(prompts)))
