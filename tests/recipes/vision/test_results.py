"""What is read from a folder of runs; what is missing, and what is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from monolora.errors import InputError
from monolora.recipes.vision.results import ConsistencyRecord, Records, read_records
from tests.support.vision_records import RATES, make_records, write_record


@pytest.fixture
def out(tmp_path: Path) -> Path:
    make_records(tmp_path / "out", seeds=(0, 11), draws=2)
    return tmp_path / "out"


def results(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["results"]


def consistency_of(records: Records, representation: str, seed: int) -> ConsistencyRecord:
    key = (representation, seed)
    return next(own for own in records.consistency_records if (own.representation, own.seed) == key)


def change(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"results": results(path) | changed}))


def test_all_records_are_read_in_the_papers_order(out: Path) -> None:
    records = read_records(out)
    keys = [(name, seed) for name in ("simclr", "sae", "ncl") for seed in (0, 11)]
    assert [(record.representation, record.seed) for record in records.probe_records] == keys
    assert [(record.representation, record.seed) for record in records.consistency_records] == keys
    assert [record.seed for record in records.autoencoder_records] == [0, 11]
    assert [(record.method, record.seed) for record in records.pretrain_records] == [
        (name, seed) for name in ("simclr", "ncl") for seed in (0, 11)
    ]
    assert {run.seed for run in records.finetune_runs} == {0, 11}
    assert len(records.finetune_runs) == 2 * 2 * 8 * 2  # seeds, objectives, conditions, draws


def test_numbers_are_those_of_the_files(out: Path) -> None:
    records = read_records(out)
    written = {seed: results(out / "probe" / f"ncl-{seed}.json") for seed in (0, 11)}
    assert records.accuracy("ncl", "sce", 0.3) == {seed: own["accuracy"]["sce"]["0.3"] for seed, own in written.items()}
    assert records.input_noise("ncl", "uniform", 0.8) == {
        seed: own["input_noise"]["uniform"]["0.8"] for seed, own in written.items()
    }
    assert records.rates("ce") == list(RATES)
    assert records.losses() == ["ce", "sce"]
    consistency = results(out / "consistency" / "sae-11.json")
    sae = consistency_of(records, "sae", 11)
    assert sae.right == consistency["right"]
    assert sae.worst.dimension.images == consistency["worst_class"]["images"]
    assert sae.worst.class_name == consistency["worst_class"]["class"]
    assert [dimension.dimension for dimension in sae.random_dimensions] == [
        entry["dimension"] for entry in consistency["random_dimensions"]
    ]


def test_what_was_not_measured_is_missing(out: Path) -> None:
    records = read_records(out)
    assert records.accuracy("ncl", "ce", 0.123) == {0: (), 11: ()}
    for folder in ("probe", "consistency", "finetune"):
        shutil.rmtree(out / folder)
    records = read_records(out)
    assert (records.probe_records, records.consistency_records, records.finetune_runs) == ([], [], [])
    assert len(records.pretrain_records) == 4
    assert records.data_settings() is None


def test_other_files_are_passed_over(out: Path) -> None:
    before = read_records(out)
    (out / "probe" / "simclr-0.safetensors").write_bytes(b"")
    (out / "probe" / ".simclr-0.json.part").write_text("{")
    (out / "probe" / "simclr-0-copy.json").write_text("{")
    (out / "probe" / "vit-0.json").write_text("{")
    (out / "simclr-7").mkdir()  # pretraining that is not done
    (out / "table1.csv").write_text("")
    assert read_records(out) == before


def test_seeds_may_be_negative(out: Path) -> None:
    (out / "probe" / "simclr-0.json").rename(out / "probe" / "simclr--3.json")
    assert [record.seed for record in read_records(out).probe_records if record.representation == "simclr"] == [-3, 11]


def test_settings_of_the_images_are_found_where_a_record_has_them(tmp_path: Path) -> None:
    make_records(tmp_path, data={"dataset": "uoft-cs/cifar100"})
    assert read_records(tmp_path).data_settings() == {"dataset": "uoft-cs/cifar100"}


def test_classifiers_that_got_all_images_right_have_no_wrong_ones(out: Path) -> None:
    change(out / "consistency" / "ncl-0.json", wrong=[None, 0.25])
    ncl = next(
        record for record in read_records(out).consistency_records if (record.representation, record.seed) == ("ncl", 0)
    )
    assert ncl.wrong == [0.25]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no results\. Run the steps first: monolora vision all"):
        read_records(tmp_path)
    with pytest.raises(InputError, match="has no results"):
        read_records(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("probe/sae-0.json", "{"),
        ("probe/sae-0.json", json.dumps({"settings": {}, "inputs": {}, "results": {"classes": []}})),
        ("finetune/11.json", json.dumps({"settings": {}, "inputs": {}, "results": {"runs": [{}]}})),
        ("sae-0/sae.json", json.dumps({"settings": {}, "inputs": {}, "results": {"explained_variance": 0.5}})),
        ("simclr-11/pretrain.json", json.dumps({"settings": {}, "inputs": {}, "results": None})),
        ("consistency/ncl-0.json", "[]"),
    ],
)
def test_damaged_records_are_named(out: Path, path: str, text: str) -> None:
    (out / path).write_text(text)
    with pytest.raises(InputError, match=f"{path} is damaged.* Delete it") as caught:
        read_records(out)
    assert "\n" not in str(caught.value)


def test_rates_are_those_of_all_records(out: Path) -> None:
    path = out / "probe" / "extra"
    write_record(path, results(out / "probe" / "ncl-0.json") | {"accuracy": {"ce": {"0.95": [0.1]}}})
    path.rename(out / "probe" / "ncl-12.json")
    assert read_records(out).rates("ce") == [*RATES, 0.95]
