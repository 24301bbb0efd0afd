"""Records of the toy model are read in the order of sparsity; what is missing or damaged is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from monolora.errors import InputError
from monolora.recipes.superposition.records import feature_share, read_records
from monolora.stats import wilson
from tests.support.toy_records import make_records


def test_all_is_in_the_order_of_sparsity(tmp_path: Path) -> None:
    make_records(tmp_path, 2, sparsities=(0.9, 0.0, 0.5), train_samples=(2000, 90))
    records = read_records(tmp_path)
    assert records.sparsities == (0.0, 0.5, 0.9)
    written = load_file(tmp_path / "encoders.safetensors")["W"]
    assert np.array_equal(records.W_Ssmn, written[[1, 2, 0]])
    norms = np.sqrt((records.W_Ssmn.astype(float) ** 2).sum(2))
    for index, S in enumerate(records.sparsities):
        assert records.geometry[S].norms == pytest.approx(norms[index])
    assert list(records.noise) == [90, 2000]
    assert records.most_samples == 2000
    record = json.loads((tmp_path / "noise-90.json").read_text())["results"]["accuracy"]
    assert records.noise[90].accuracy[0.5]["poly"]["input"][0.3] == record["0.5"]["poly"]["input"]["0.3"]


def drop(*keys: str) -> Callable[[dict[str, Any]], object]:
    def change(results: dict[str, Any]) -> object:
        for key in keys[:-1]:
            results = results[key]
        return results.pop(keys[-1])

    return change


def set_to(value: object, *keys: str) -> Callable[[dict[str, Any]], object]:
    def change(results: dict[str, Any]) -> object:
        for key in keys[:-1]:
            results = results[key]
        return results.update({keys[-1]: value})

    return change


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("encoders", drop("norms"), "it has no 'norms'."),
        ("encoders", drop("norms", "0.9"), "its sparsities are not those of the encoders."),
        ("encoders", drop("paired", "0.9"), "it has no '0.9'."),
        ("encoders", set_to([[1.0] * 12], "norms", "0.5"), "its values of S = 0.5 are not of 2 seeds and 12 features"),
        ("encoders", set_to(5, "dimensionality"), "is damaged: "),
        ("noise-1000", drop("accuracy", "0.5", "poly"), "it has no 'poly'."),
        (
            "noise-1000",
            set_to([0.5], "accuracy", "0.9", "mono", "label", "0.4"),
            "it has 1 seeds; the encoders have 2.",
        ),
        ("noise-1000", set_to([0.5, None], "accuracy", "0.9", "mono", "input", "0.1"), "is damaged: "),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, name: str, change: Callable[..., object], why: str) -> None:
    make_records(tmp_path, 2)
    path = tmp_path / f"{name}.json"
    record = json.loads(path.read_text())
    change(record["results"])
    path.write_text(json.dumps(record))
    message = refusal(tmp_path)
    assert message.startswith(f"{path} is damaged: ")
    assert why in message


def refusal(out: Path) -> str:
    """The error, which is one line and names the fix."""
    with pytest.raises(InputError) as caught:
        read_records(out)
    message = str(caught.value)
    assert "\n" not in message
    assert f"Run: monolora superposition run --out {out}" in message
    return message


@pytest.mark.parametrize("name", ["encoders.json", "encoders.safetensors", "noise-1000.json"])
def test_a_broken_file_is_refused(tmp_path: Path, name: str) -> None:
    make_records(tmp_path, 2, train_samples=(1000,))
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(tmp_path).startswith(f"{path} is damaged: ")


@pytest.mark.parametrize("name", ["encoders.json", "encoders.safetensors", "noise-1000.json"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    make_records(tmp_path, 2, train_samples=(1000,))
    (tmp_path / name).unlink()
    assert refusal(tmp_path).startswith(f"There is no {tmp_path / name.replace('1000', '*')}. ")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    make_records(tmp_path, 2)
    save_file({"W": np.zeros((3, 4), np.float32)}, tmp_path / "encoders.safetensors")
    assert "W has shape (3, 4)" in refusal(tmp_path)


def test_classifiers_of_other_encoders_are_refused(tmp_path: Path) -> None:
    make_records(tmp_path, 2, train_samples=(1000,))
    make_records(tmp_path, 3, train_samples=(5000,))
    message = refusal(tmp_path)
    assert message.startswith(
        f"{tmp_path / 'noise-1000.json'} is of other encoders than those in {tmp_path}. Delete it."
    )


def test_classifiers_of_different_settings_are_refused(tmp_path: Path) -> None:
    make_records(tmp_path, 2, train_samples=(1000, 5000))
    path = tmp_path / "noise-5000.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": {"train_samples": 5000, "epochs": 3}}))
    with pytest.raises(InputError, match=r"noise-1000\.json and noise-5000\.json differ in epochs\. Delete one"):
        read_records(tmp_path)


def test_encoders_of_another_record_are_refused(tmp_path: Path) -> None:
    make_records(tmp_path, 2)
    W_Ssmn = load_file(tmp_path / "encoders.safetensors")["W"]
    save_file({"W": 2 * W_Ssmn}, tmp_path / "encoders.safetensors")
    assert "it is of other weights than those in encoders.safetensors" in refusal(tmp_path)


def test_dense_data_alone_are_refused(tmp_path: Path) -> None:
    make_records(tmp_path, 2, sparsities=(0.0,))
    assert "has no sparsity above 0: nothing to compare." in refusal(tmp_path)


def test_intervals_of_shares_of_features_end_at_0_and_100() -> None:
    """Student's interval of 12, 11 and 12 of 12 features would end at 109 %."""
    flags_sn = np.ones((3, 12), bool)
    flags_sn[1, 0] = False
    share = feature_share(flags_sn)
    assert share.mean == pytest.approx(100 * 35 / 36)
    assert share.interval is not None
    assert 60 < share.interval.low < share.mean < share.interval.high <= 100
    all_of_them, none = feature_share(np.ones((3, 12), bool)), feature_share(np.zeros((3, 12), bool))
    assert (all_of_them.low, all_of_them.high) == pytest.approx([100 * end for end in wilson(12, 12)])
    assert (none.low, none.high) == pytest.approx([100 * end for end in wilson(0, 12)])
    assert feature_share(flags_sn[:1]).interval is None  # one seed


def test_geometry_says_what_is_represented(tmp_path: Path) -> None:
    make_records(tmp_path, 2, sparsities=(0.0, 0.9))
    geometry = read_records(tmp_path).geometry
    assert geometry[0.0].represented.tolist() == 2 * [6 * [True] + 6 * [False]]
    assert geometry[0.9].represented.all()
