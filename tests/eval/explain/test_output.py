"""``features.parquet`` as pandas reads it, against the records that it is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monolora.eval.explain.output import write_parquet
from monolora.eval.explain.records import Ablations, Explained
from tests.support.feature_records import made


def _read(folder: Path, explained: Explained) -> pd.DataFrame:
    write_parquet(folder / "features.parquet", explained)
    return pd.read_parquet(folder / "features.parquet")


@pytest.mark.parametrize("signed", [False, True])
def test_histograms_come_back(tmp_path: Path, signed: bool) -> None:
    explained = made(signed=signed)
    units = _read(tmp_path, explained)
    for dataset in explained.datasets:
        np.testing.assert_array_equal(np.stack(units[f"{dataset.name}.histogram"]), dataset.histogram_UE)
        for edges in units[f"{dataset.name}.histogram_edges"]:
            np.testing.assert_array_equal(edges, dataset.edges)


def test_changes_and_contrasts_come_back(tmp_path: Path) -> None:
    explained = made()
    units = _read(tmp_path, explained)
    for place, measure in enumerate(explained.ablations.measures):
        for field in ("value", "low", "high", "p", "q"):
            column = units[f"ablation.{measure.id}" + f".{field}" * (field != "value")]
            assert column.notna().any() == (measure.is_tested or field not in ("p", "q"))
            for unit, value in enumerate(column):
                changes = explained.ablations.changes.get(unit)
                assert value == pytest.approx(
                    np.nan if changes is None else getattr(changes[place], field), nan_ok=True
                )
    for each in explained.contrasts:
        for field in ("auc", "p", "q", "firing_a", "firing_b"):
            np.testing.assert_array_equal(units[f"contrast.{each.a}~{each.b}.{field}"], vars(each)[field])


def test_what_is_not_of_single_units_is_in_the_attributes(tmp_path: Path) -> None:
    explained = made()
    about = _read(tmp_path, explained).attrs["monolora"]
    assert (about["adapter"], about["method"], about["model"]) == ("runs/notes monolora", "MonoLoRA", "llama-tiny")
    assert about["made"] == explained.origin
    for dataset in explained.datasets:
        said = about["datasets"][dataset.name]
        assert said == {key: vars(dataset)[key] for key in said}
        assert {"texts", "tokens", "labels", "strongest", "chance"} <= said.keys()
    accuracy, kl = (about["measures"][key] for key in ("notes.accuracy", "letters.kl"))
    assert accuracy["adapted"] == 91.2
    assert accuracy["everything"]["value"] == -38.25
    assert kl["adapted"] is None
    assert kl["everything"]["q"] is None
    assert about["contrasts"]["letters~notes"] == {"a": "letters", "b": "notes", "texts_a": 390, "texts_b": 388}


@pytest.mark.parametrize("is_ablated", [False, True])
def test_not_all_units_were_taken_out_together(tmp_path: Path, is_ablated: bool) -> None:
    given = made().ablations
    ablations = Ablations(measures=given.measures, changes=given.changes) if is_ablated else Ablations()
    measures = _read(tmp_path, made(ablations=ablations)).attrs["monolora"]["measures"]
    assert [each["everything"] for each in measures.values()] == [None] * (2 * is_ablated)
