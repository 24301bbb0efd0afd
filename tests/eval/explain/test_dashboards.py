"""The export has the fields that SAEDashboard's classes and Neuronpedia's converter read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from monolora.eval.explain.dashboards import write_dashboards
from tests.support.feature_records import made

# of NeuronpediaDashboardFeature.to_dict, SAEDashboard
FIELDS = {
    "feature_index", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices",
    "correlated_features_l1", "correlated_features_pearson", "neg_str", "neg_values", "pos_str", "pos_values",
    "frac_nonzero", "freq_hist_data_bar_values", "freq_hist_data_bar_heights", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "n_prompts_total", "n_tokens_in_prompt", "dataset", "decoder_weights_dist",
    "activations",
}  # fmt: skip


@pytest.mark.parametrize("signed", [False, True])
def test_each_module_has_a_file_with_its_units(tmp_path: Path, signed: bool) -> None:
    explained = made(units=40, contexts=3, signed=signed)
    (context, *_) = explained.datasets[0].ends[0].contexts[17]
    explained.datasets[0].ends[0].contexts[17][0] = context._replace(activations=[math.nan, *context.activations[1:]])
    write_dashboards(tmp_path, replace(explained, model="org/llama-tiny"))
    files = sorted(path.parent.name for path in tmp_path.glob("dashboards/*/batch-0.json"))
    assert files == sorted({unit.module for unit in explained.units})
    file = tmp_path / "dashboards" / explained.units[17].module / "batch-0.json"
    batch = json.loads(file.read_text())
    assert {key: batch[key] for key in ("model_id", "layer", "sae_set")} == {
        "model_id": "llama-tiny",
        "layer": 0,
        "sae_set": "notes monolora-k_proj",
    }
    assert [feature["feature_index"] for feature in batch["features"]] == list(range(16))
    feature = batch["features"][1]
    assert set(feature) == FIELDS
    dataset = explained.datasets[0]
    assert feature["frac_nonzero"] == dataset.firing[17]
    assert sum(feature["freq_hist_data_bar_heights"]) == dataset.histogram_UE[17].sum()
    assert all(map(math.isfinite, feature["freq_hist_data_bar_values"]))
    first = feature["activations"][0]
    assert set(first) == {"bin_min", "bin_max", "bin_contains", "tokens", "values"}
    assert len(first["tokens"]) == len(first["values"])
    assert first["values"][0] == 0
    assert max(first["values"]) == first["bin_max"] == pytest.approx(context.value, rel=1e-4)
    assert len(feature["activations"]) == 3 * (1 + signed)
    for index, r in zip(feature["correlated_features_indices"], feature["correlated_features_pearson"], strict=True):
        assert any(
            partner.unit == 16 + index and partner.correlation == pytest.approx(r, rel=1e-4)
            for partner in dataset.partners[17]
        )
