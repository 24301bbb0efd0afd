"""Records of steps: read as written, and recognised as those of the settings at hand or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from monolora.errors import InputError, SaveError
from monolora.recipes import experiment_steps

SETTINGS: dict[str, Any] = {"epochs": 3, "rates": (0.1, 0.5), "name": None, "deep": {"on": True}}
INPUTS = {"train": "abc", "val": "def"}
RESULTS = {"runs": [{"accuracy": [0.25, 0.1 + 0.2], "draw": 1}], "text": "ä"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A written record."""
    path = tmp_path / "some" / "where" / "0.json"
    experiment_steps.write(path, SETTINGS, INPUTS, RESULTS)
    return path


def test_round_trip(path: Path) -> None:
    found = experiment_steps.read(path, "")
    assert found["results"] == RESULTS
    assert found["settings"] == SETTINGS | {"rates": [0.1, 0.5]}
    assert found["inputs"] == INPUTS
    assert {"versions", "machine", "git"} <= found["provenance"].keys()
    assert [each.name for each in path.parent.iterdir()] == ["0.json"]


def test_results_of_the_same_settings_and_inputs(path: Path) -> None:
    assert experiment_steps.results_if_same(path, dict(reversed(SETTINGS.items())), INPUTS) == RESULTS


@pytest.mark.parametrize(
    ("settings", "inputs"),
    [
        (SETTINGS | {"epochs": 4}, INPUTS),
        (SETTINGS | {"rates": (0.1,)}, INPUTS),
        (SETTINGS | {"deep": {"on": False}}, INPUTS),
        (SETTINGS | {"more": 1}, INPUTS),
        ({"epochs": 3}, INPUTS),
        (SETTINGS, INPUTS | {"val": "xyz"}),
        (SETTINGS, {"train": "abc"}),
        (SETTINGS, INPUTS | {"more": ""}),
    ],
)
def test_results_of_others_are_not_taken(path: Path, settings: dict[str, Any], inputs: dict[str, str]) -> None:
    assert experiment_steps.results_if_same(path, settings, inputs) is None


def test_none_there(tmp_path: Path) -> None:
    assert experiment_steps.results_if_same(tmp_path / "0.json", SETTINGS, INPUTS) is None
    with pytest.raises(InputError, match=r"There is no .*0\.json\. Probe first\."):
        experiment_steps.read(tmp_path / "0.json", "Probe first.")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '{"settings": {}, "inputs": {}}', "\xff"])
def test_damaged_records_are_refused(path: Path, content: str) -> None:
    path.write_bytes(content.encode("latin-1"))
    for refused in (
        lambda: experiment_steps.read(path, "Fix it."),
        lambda: experiment_steps.results_if_same(path, SETTINGS, INPUTS),
    ):
        with pytest.raises(InputError, match=r"0\.json is damaged: .* Delete it\.") as raised:
            refused()
        assert "\n" not in str(raised.value)


def test_written_again(path: Path) -> None:
    experiment_steps.write(path, SETTINGS, INPUTS, {"runs": []})
    assert experiment_steps.results_if_same(path, SETTINGS, INPUTS) == {"runs": []}


def test_a_disk_that_does_not_take_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"Cannot save into .*Free space"):
        experiment_steps.write(tmp_path / "file" / "0.json", SETTINGS, INPUTS, RESULTS)


def test_a_write_that_fails_leaves_the_record(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_text()

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SaveError, match="No space left on device"):
        experiment_steps.write(path, SETTINGS, INPUTS, {"runs": []})
    assert path.read_text() == before
    assert [each.name for each in path.parent.iterdir()] == ["0.json"]


def test_numbers_that_are_none_become_null(path: Path) -> None:
    experiment_steps.write(path, SETTINGS, INPUTS, {"loss": [float("nan"), float("inf"), 1.0]})
    assert experiment_steps.read(path, "")["results"] == {"loss": [None, None, 1.0]}
    assert "NaN" not in path.read_text()


def test_records_move_with_their_folder(path: Path, tmp_path: Path) -> None:
    moved = shutil.move(path.parent, tmp_path / "elsewhere")
    assert experiment_steps.results_if_same(Path(moved) / "0.json", SETTINGS, INPUTS) == RESULTS
    assert json.loads((Path(moved) / "0.json").read_text())["inputs"] == INPUTS
