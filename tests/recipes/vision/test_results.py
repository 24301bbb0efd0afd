"""What is read from a folder of runs; what is missing, and what is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from monolora.errors import InputError
from monolora.recipes.vision.results import gather
from tests.support.vision_records import RATES, make_records, write_record


@pytest.fixture
def out(tmp_path: Path) -> Path:
    make_records(tmp_path / "out", seeds=(0, 11), draws=2)
    return tmp_path / "out"


def results(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["results"]


def change(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"results": results(path) | changed}))


def test_all_records_are_read_in_the_papers_order(out: Path) -> None:
    found = gather(out)
    keys = [(name, seed) for name in ("simclr", "sae", "ncl") for seed in (0, 11)]
    assert [(each.representation, each.seed) for each in found.probed] == keys
    assert [(each.representation, each.seed) for each in found.consistent] == keys
    assert [each.seed for each in found.autoencoders] == [0, 11]
    assert [(each.method, each.seed) for each in found.pretrained] == [
        (name, seed) for name in ("simclr", "ncl") for seed in (0, 11)
    ]
    assert {each.seed for each in found.finetuned} == {0, 11}
    assert len(found.finetuned) == 2 * 2 * 8 * 2  # seeds, objectives, conditions, draws


def test_numbers_are_those_of_the_files(out: Path) -> None:
    found = gather(out)
    written = {seed: results(out / "probe" / f"ncl-{seed}.json") for seed in (0, 11)}
    assert found.accuracy("ncl", "sce", 0.3) == {seed: each["accuracy"]["sce"]["0.3"] for seed, each in written.items()}
    assert found.input_noise("ncl", "uniform", 0.8) == {
        seed: each["input_noise"]["uniform"]["0.8"] for seed, each in written.items()
    }
    assert found.rates("ce") == list(RATES)
    assert found.losses() == ["ce", "sce"]
    consistency = results(out / "consistency" / "sae-11.json")
    sae = next(each for each in found.consistent if (each.representation, each.seed) == ("sae", 11))
    assert sae.right == consistency["right"]
    assert sae.worst.shown.images == consistency["worst_class"]["images"]
    assert sae.worst.name == consistency["worst_class"]["class"]
    assert [each.dimension for each in sae.random] == [each["dimension"] for each in consistency["random_dimensions"]]


def test_what_was_not_measured_is_missing(out: Path) -> None:
    found = gather(out)
    assert found.accuracy("ncl", "ce", 0.123) == {0: (), 11: ()}
    for folder in ("probe", "consistency", "finetune"):
        shutil.rmtree(out / folder)
    found = gather(out)
    assert (found.probed, found.consistent, found.finetuned) == ([], [], [])
    assert len(found.pretrained) == 4
    assert found.data() is None


def test_other_files_are_passed_over(out: Path) -> None:
    before = gather(out)
    (out / "probe" / "simclr-0.safetensors").write_bytes(b"")
    (out / "probe" / ".simclr-0.json.part").write_text("{")
    (out / "probe" / "simclr-0-copy.json").write_text("{")
    (out / "probe" / "vit-0.json").write_text("{")
    (out / "simclr-7").mkdir()  # pretraining that is not done
    (out / "table1.csv").write_text("")
    assert gather(out) == before


def test_seeds_may_be_negative(out: Path) -> None:
    (out / "probe" / "simclr-0.json").rename(out / "probe" / "simclr--3.json")
    assert [each.seed for each in gather(out).probed if each.representation == "simclr"] == [-3, 11]


def test_settings_of_the_images_are_found_where_a_record_has_them(tmp_path: Path) -> None:
    make_records(tmp_path, data={"dataset": "uoft-cs/cifar100"})
    assert gather(tmp_path).data() == {"dataset": "uoft-cs/cifar100"}


def test_classifiers_that_got_all_images_right_have_no_wrong_ones(out: Path) -> None:
    change(out / "consistency" / "ncl-0.json", wrong=[None, 0.25])
    ncl = next(each for each in gather(out).consistent if (each.representation, each.seed) == ("ncl", 0))
    assert ncl.wrong == [0.25]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no results\. Run the steps first: monolora vision all"):
        gather(tmp_path)
    with pytest.raises(InputError, match="has no results"):
        gather(tmp_path / "nowhere")


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
        gather(out)
    assert "\n" not in str(caught.value)


def test_rates_are_those_of_all_records(out: Path) -> None:
    path = out / "probe" / "extra"
    write_record(path, results(out / "probe" / "ncl-0.json") | {"accuracy": {"ce": {"0.95": [0.1]}}})
    path.rename(out / "probe" / "ncl-12.json")
    assert gather(out).rates("ce") == [*RATES, 0.95]
