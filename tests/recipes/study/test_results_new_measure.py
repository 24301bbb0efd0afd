"""A measure is added in one place: the table, the differences, the report and the study take it from there."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from monolora.eval.measures import measures
from monolora.eval.measures.measures import columns_of
from monolora.eval.measures.records import RunRecords, SetRecords
from monolora.eval.measures.results import build
from monolora.eval.measures.table import BOOTSTRAP, Column, Model, PromptValues, tidy
from monolora.eval.report.page import page
from monolora.eval.report.tables import as_csv
from monolora.files import read_json
from monolora.recipes.study import results as study_results
from monolora.recipes.study import tables
from monolora.recipes.study.claims import claims
from monolora.recipes.study.plan import row_name, training
from monolora.recipes.study.settings import Study
from monolora.run_record import write
from tests.support.synthetic_run import RUN, make

TITLE, DESCRIPTION = "mentions of tea", "times that an answer has the word tea"


def _tea(records: SetRecords) -> Iterator[PromptValues]:
    column = Column(
        metric="tea", set=records.set.name, aspect="text", title=TITLE, group=records.set.name, description=DESCRIPTION,
        unit="words", better="higher", test=BOOTSTRAP, shown_in=("steps", "study", "figure"),
    )  # fmt: skip
    yield records.values(column, records.of_responses(lambda _, response: float(response.text.split().count("tea"))))


@pytest.fixture
def records(study: Study, monkeypatch: pytest.MonkeyPatch) -> RunRecords:
    """Of a study's evaluation, with the measure in place."""
    monkeypatch.setattr(measures, "MEASURES", (*measures.MEASURES, _tea))
    tuned = [Model(row_name(adapter, seed), "adapter") for adapter in study.adapters for seed in study.seeds]
    return make(models=[Model("base", "base"), *tuned], sets=("beavertails",))


def test_it_is_in_the_table_and_in_every_form_of_the_report(records: RunRecords) -> None:
    results = build(RUN, records)
    (column,) = (each for each in results["columns"] if each["title"] == TITLE)
    assert column["id"] == "beavertails/tea"
    rows = [row for row in csv.DictReader(io.StringIO(as_csv(results))) if row["column"] == column["id"]]
    prompts = records.sets[0].prompts
    for row, model in zip(rows, records.models, strict=True):
        given = [(each.weight, records.responses["beavertails"][model.name].get(each.key)) for each in prompts]
        valid = [(weight, of.text.split().count("tea")) for weight, of in given if of is not None and of.status == "ok"]
        weights, counts = zip(*valid, strict=True)
        assert float(row["value"]) == pytest.approx(np.average(counts, weights=weights))
        assert (row["unit"], row["title"]) == ("words", TITLE)
    tested = [each for each in results["differences"] if each["column"] == column["id"]]
    assert tested
    assert all(each["p_holm"] is not None for each in tested)
    assert TITLE in page(results, [])


def test_seconds_of_trainings_where_the_study_asks_for_them(
    study: Study, records: RunRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tidy(records.models, columns_of(records.by_set()))
    monkeypatch.setattr(study_results.runs, "table", lambda folder: table)
    monkeypatch.setattr(study_results, "selected_rates", lambda study, dataset: {"LoRA": 0.02, "MonoLoRA": 0.002})
    for adapter, rate, factor in (("LoRA", 0.02, 1), ("MonoLoRA", 0.002, 10)):
        for seed in study.seeds:
            results = {"before": None, "after": None, "seconds": {"train": 3.5 * seed * factor}}
            write(training(study, "demo", adapter, rate, seed).folder, {"config": {}, "results": results})
    monkeypatch.setattr(study_results, "read", lambda folder: read_json(folder / "run.json", ""))
    *columns, seconds = study_results.of_dataset(replace(study, seconds=True), "demo")
    assert len(columns) == len(study_results.of_dataset(study, "demo"))
    assert {name: values.tolist() for name, values in seconds.by_model.items()} == {
        "LoRA": [[3.5], [7.0]], "MonoLoRA": [[35.0], [70.0]],
    }  # fmt: skip
    estimate = seconds.mean("LoRA")
    assert estimate is not None
    assert (estimate.mean, estimate.n) == (5.25, 2)
    assert "training, seconds" in tables.means_table(study, tables.beside([seconds])).markdown()


def test_it_is_in_the_studys_tables(study: Study, records: RunRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tidy(records.models, columns_of(records.by_set()))
    monkeypatch.setattr(study_results.runs, "table", lambda folder: table)
    columns = study_results.of_dataset(study, "demo")
    (tea,) = (each for each in tables.beside(columns) if each.column.metric == "tea")
    rows = table.values[table.values["metric"] == "tea"]
    for adapter in study.adapters:
        of_seeds = [rows[rows["model"] == row_name(adapter, seed)]["value"] for seed in study.seeds]
        np.testing.assert_array_equal(tea.by_model[adapter], np.stack(of_seeds))
    assert TITLE in tables.means_table(study, tables.beside(columns)).markdown()
    assert DESCRIPTION in study_results.definitions(study, {"demo": tables.beside(columns)}).markdown()
    assert {row["title"] for row in tables.csv_rows(study, "demo", columns)} >= {TITLE, "length"}
    assert not [
        claim for claim in claims(study, "demo", columns) if claim.values is tea
    ]  # nobody claims anything of it
