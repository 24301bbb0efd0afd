"""``monolora explain --score``: scores of an adapter's units that need no judge, each beside that of random units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from monolora.eval.explain.faithfulness import Faithfulness
from monolora.eval.explain.probe_scores import (
    UnitProbes,
    perturbation_scores,
    probe_scores,
    read_labelled,
    unit_probes,
)
from monolora.eval.explain.records import Ablations, DatasetFeatures, Floats, Score
from monolora.eval.explain.settings import Settings
from monolora.eval.explain.text_sets import TextSet, spread
from monolora.eval.explain.unit_reader import Sample, UnitReader, reading_units
from monolora.explain.contexts import Text
from monolora.inference import Inference
from monolora.units import Layout


@dataclass(frozen=True, kw_only=True)
class Scored:
    """All scores, and what they say of single units.

    Attributes:
        scores: of all units together.
        probes: of single units, by data set.
        correlations: of single units' activations with the effects of their ablations, by data set; NaN for those that
            were not ablated, ``(U,)``.
        samples: activations on some tokens, by data set.
    """

    scores: list[Score] = field(default_factory=list)
    probes: Mapping[str, UnitProbes] = field(default_factory=dict)
    correlations: Mapping[str, Floats] = field(default_factory=dict)
    samples: Mapping[str, Sample] = field(default_factory=dict)

    def beside(self, features: DatasetFeatures) -> DatasetFeatures:
        """The features of a data set with its units' scores."""
        probes = self.probes.get(features.name)
        return replace(
            features,
            probe=None if probes is None else probes.accuracy,
            probe_label=None if probes is None else probes.label,
            faithfulness=self.correlations.get(features.name),
        )


def score(
    inference: Inference,
    layout: Layout,
    text_sets: Mapping[str, TextSet],
    features: Sequence[DatasetFeatures],
    ablations: Ablations,
    settings: Settings,
) -> Scored:
    """All scores of an adapter.

    Args:
        inference: the adapted model.
        layout: of its units.
        text_sets: the data sets.
        features: of the units on them.
        ablations: of some units; without any there is no faithfulness.
        settings: how many texts and prompts.
    """
    tokenizer = inference.tokenizer
    faithful = []
    with reading_units(inference, layout) as reader:
        all_read = [
            read_labelled(reader, texts, tokenizer, settings.score_texts)
            for texts in text_sets.values()
            if texts.labels
        ]
        for name, kl_KP in ablations.kl.items():
            x_DSPU = _on_prompts(reader, text_sets[name], tokenizer, settings.ablation_prompts)
            effect_U = next(of_dataset.effect for of_dataset in features if of_dataset.name == name)
            faithful.append(Faithfulness.of(name, list(ablations.changes), x_DSPU, effect_U, kl_KP))
    readings = [of_dataset for of_dataset in all_read if of_dataset is not None]
    return Scored(
        scores=[
            *probe_scores(readings),
            *perturbation_scores(readings),
            *(row for of_dataset in faithful for row in of_dataset.scores),
        ],
        probes={of_dataset.name: unit_probes(of_dataset) for of_dataset in readings},
        correlations={of_dataset.name: of_dataset.correlation_U for of_dataset in faithful},
        samples={of_dataset.name: of_dataset.sample for of_dataset in readings},
    )


def _on_prompts(reader: UnitReader, text_set: TextSet, tokenizer: Any, most: int) -> Floats:
    """Mean sizes of activations over all tokens of the prompts of the ablations, ``(1 + D, S, P, U)``."""
    numbers = spread(len(text_set.examples), most)
    prompts = [Text(number, text_set.ids(number, tokenizer)) for number in numbers]
    return reader.text_means(text_set.name, prompts, reader.sample(prompts), of_size=True)
