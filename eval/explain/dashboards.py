"""Dashboards of units in the JSON of SAEDashboard, which Neuronpedia's converter takes: a folder for each module.

``dashboards/MODULE/batch-0.json`` has ``model_id``, ``layer``, ``sae_set`` and ``features``, a unit each, with the
fields of SAEDashboard's ``NeuronpediaDashboardFeature``. What an adapter's unit has no counterpart of is empty: aligned
and correlated neurons, the histogram of logits, the weights of heads. Texts are those of the first data set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monolora.eval.explain.explorer import module_parts
from monolora.eval.explain.records import Context, DatasetFeatures, Explained
from monolora.files import write_json

FOLDER = "dashboards"
_EMPTY = (
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_l1",
    "correlated_neurons_pearson",
    "correlated_features_l1",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
    "decoder_weights_dist",
)


def write_dashboards(folder: Path, explained: Explained) -> None:
    """Write a file for each module.

    Raises:
        OSError: if the disk does not take it.
    """
    modules = dict.fromkeys(unit.module for unit in explained.units)
    for parts in module_parts(modules):
        path = folder / FOLDER / parts.name / "batch-0.json"
        path.parent.mkdir(parents=True)
        rows = [row for row, unit in enumerate(explained.units) if unit.module == parts.name]
        content = {
            "model_id": Path(explained.model).name,
            "layer": parts.layer or 0,
            "sae_set": f"{Path(explained.adapter).name}-{parts.kind}",
            "features": [_feature(explained, row, rows[0]) for row in rows],
        }
        write_json(path, content)


def _feature(explained: Explained, row: int, first: int) -> dict[str, Any]:
    """A unit, by its row and that of the first unit of its module."""
    dataset, logits, unit = explained.datasets[0], explained.logits[row], explained.units[row]
    partners = [partner for partner in dataset.partners[row] if explained.units[partner.unit].module == unit.module]
    raised, lowered = ([], []) if logits is None else (logits.raised, logits.lowered)
    return {
        "feature_index": unit.unit,
        **{name: [] for name in _EMPTY},
        "correlated_features_indices": [partner.unit - first for partner in partners],
        "correlated_features_pearson": [_rounded(partner.correlation) for partner in partners],
        "pos_str": [token for token, _ in raised],
        "pos_values": [_rounded(value) for _, value in raised],
        "neg_str": [token for token, _ in lowered],
        "neg_values": [_rounded(value) for _, value in lowered],
        "frac_nonzero": float(dataset.firing[row]),
        **_histogram(dataset, row),
        "n_prompts_total": dataset.texts,
        "n_tokens_in_prompt": round(dataset.tokens / dataset.texts),
        "dataset": dataset.name,
        "activations": [_activation(context) for end in dataset.ends for context in end.contexts[row]],
    }


def _histogram(dataset: DatasetFeatures, row: int) -> dict[str, list[float]]:
    """Middles of the bins, and their tokens; a bin without an end has its other one."""
    bins = [
        (high if math.isinf(low) else low if math.isinf(high) else (low + high) / 2, count)
        for low, high, count in zip(
            dataset.edges[:-1], dataset.edges[1:], dataset.histogram_UE[row].tolist(), strict=True
        )
        if count
    ]
    return {
        "freq_hist_data_bar_values": [float(middle) for middle, _ in bins],
        "freq_hist_data_bar_heights": [count for _, count in bins],
    }


def _activation(context: Context) -> dict[str, Any]:
    """A context; its interval is that of SAEDashboard's strongest activations. Tokens that do not count have 0."""
    return {
        "bin_min": -1,
        "bin_max": _rounded(context.value),
        "bin_contains": -1,
        "tokens": list(context.tokens),
        "values": _values(context.activations),
    }


def _values(activations: Sequence[float]) -> list[float]:
    return [0.0 if math.isnan(value) else _rounded(value) for value in activations]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
