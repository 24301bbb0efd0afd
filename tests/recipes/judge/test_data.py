"""The split by prompt: nothing that is judged later was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.beaverdam import LABELS
from monolora.errors import InputError
from monolora.recipes.judge import data as judge_data
from monolora.recipes.judge.data import Row, prompt_key, read_rows, split_by_prompt
from monolora.recipes.settings import JUDGE_DATASET as DATASET

NO_LABELS = (False,) * len(LABELS)
ROWS = st.lists(
    st.builds(
        lambda prompt, unsafe: Row(prompt, "an answer", NO_LABELS, unsafe),
        st.sampled_from(["a", "A!", "b", "b?", " c", "d", "e e", "ee", "!", "?", "ß", "ss"]),
        st.booleans(),
    ),
    max_size=30,
)


def _keys(rows: list[Row]) -> set[str]:
    return {prompt_key(row.prompt) for row in rows}


@settings(deadline=None)
@given(ROWS, st.lists(ROWS, max_size=2), st.floats(0, 0.9), st.integers(0, 3), st.integers(1, 10))
def test_no_prompt_is_on_two_sides(
    test_split: list[Row], others: list[list[Row]], share: float, seed: int, held_out: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(judge_data, "HELD_OUT_ROWS", held_out)
        train, validation, test = split_by_prompt(test_split, others, share, seed)
    assert not _keys(train) & _keys(validation)
    assert not _keys(test) & (_keys(train) | _keys(validation))
    assert _keys(test) == _keys(test_split[:held_out])
    assert test == [row for row in test_split if prompt_key(row.prompt) in _keys(test)]
    assert share or not validation
    left = [row for rows in (test_split, *others) for row in rows if prompt_key(row.prompt) not in _keys(test)]
    assert len(train) + len(validation) <= len(left)
    if all(len({row.unsafe for row in rows}) == 2 for rows in (test_split, *others)):
        assert sorted(train + validation) == sorted(left)


def test_a_prompts_side_depends_on_nothing_else() -> None:
    rows = [Row(f"question {n}", "an answer", NO_LABELS, n % 2 == 0) for n in range(400)]
    first = [Row("another", "an answer", NO_LABELS, True)] * judge_data.HELD_OUT_ROWS
    one, other = (split_by_prompt([*first, *some], [], 0.25, 7) for some in (rows, rows[::-2]))
    assert _keys(other.validation) == _keys(one.validation) & _keys(rows[::-2])
    assert 60 < len(one.validation) < 140
    assert _keys(split_by_prompt([*first, *rows], [], 0.25, 8).validation) != _keys(one.validation)


def test_rows_of_one_verdict_are_no_measure() -> None:
    held_out = [Row("held out", "x", NO_LABELS, False)] * judge_data.HELD_OUT_ROWS
    unsafe = [Row(f"question {n}", "x", NO_LABELS, True) for n in range(100)]
    train, validation, test = split_by_prompt(held_out, [unsafe, held_out], 0.5, 0)
    assert test == held_out
    assert validation == []
    assert 30 < len(train) < 70


@pytest.mark.parametrize(("one", "other"), [("How are you?", "how are you"), ("a-b", "AB"), ("STRASSE", "straße")])
def test_the_same_prompt(one: str, other: str) -> None:
    assert prompt_key(one) == prompt_key(other)


def test_different_prompts() -> None:
    assert len({prompt_key(prompt) for prompt in ("a", "b", "!", "?", "")}) == 5


def _table(**changes: Any) -> datasets.Dataset:
    row = {"prompt": "p", "response": "r", "category": dict.fromkeys(LABELS, False), "is_safe": True} | changes
    return datasets.Dataset.from_list([{key: value for key, value in row.items() if value is not None}])


def test_read_rows() -> None:
    category = dict.fromkeys(reversed(LABELS), False) | {LABELS[3]: True}
    assert read_rows(_table(category=category, is_safe=False), "here") == [
        Row("p", "r", tuple(label == LABELS[3] for label in LABELS), True)
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"response": None}, "here, has no column 'response'"),
        ({"category": {"harm": True}}, "row 0: category has no flag 'animal_abuse'"),
        ({"category": "harm"}, "row 0: category has no flag 'animal_abuse'"),
        ({"prompt": 3}, "row 0: prompt is no text"),
        ({"is_safe": "no"}, "row 0: is_safe and the flags of category must be true or false"),
        ({"category": dict.fromkeys(LABELS, 1)}, "row 0: is_safe and the flags of category must be true or false"),
    ],
)
def test_rows_that_cannot_be_read(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_rows(_table(**changes), "here")


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of three splits, in the hub's layout."""
    monkeypatch.setattr(judge_data, "HELD_OUT_ROWS", 4)
    rows = [_table(prompt=f"question {n}", is_safe=n % 2 == 0) for n in range(40)]
    for split, some in {"30k_test": rows[:20], "30k_train": rows[10:30], "330k_train": rows[30:]}.items():
        folder = tmp_path / "PKU-Alignment" / "BeaverTails" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        datasets.concatenate_datasets(some).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    monkeypatch.setenv("MONOLORA_DATA", str(tmp_path))
    return folder


@pytest.mark.usefixtures("hub_folder")
def test_which_splits_are_trained_on() -> None:
    found, names = judge_data.load(DATASET, None, "30k_test", 0, 0)
    assert names == ["30k_test", "30k_train"]
    assert (len(found.train), len(found.validation), len(found.test)) == (16 + 20, 0, 4)
    found, names = judge_data.load(DATASET, ["330k_train", "30k_test"], "30k_test", 0, 0)
    assert names == ["30k_test", "330k_train"]
    assert len(found.train) == 16 + 10


def test_without_the_usual_training_split(hub_folder: Path) -> None:
    (hub_folder / "30k_train-00000-of-00001.parquet").unlink()
    found, names = judge_data.load(DATASET, None, "30k_test", 0, 0)
    assert names == ["30k_test"]
    assert len(found.train) == 16


@pytest.mark.usefixtures("hub_folder")
@pytest.mark.parametrize(
    ("splits", "test_split", "says"),
    [
        (["30k_trian"], "30k_test", "Unknown split of PKU-Alignment/BeaverTails '30k_trian'.* Did you mean 30k_train?"),
        (None, "test", "Unknown split of PKU-Alignment/BeaverTails 'test'; choose one of"),
    ],
)
def test_unknown_splits(splits: list[str] | None, test_split: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        judge_data.load(DATASET, splits, test_split, 0, 0)


@pytest.mark.parametrize("verdicts", [[], [True], [False, False]])
def test_rows_that_teach_nothing(verdicts: list[bool]) -> None:
    judge_data.check_both_kinds("train", [True, False, True], 3)
    with pytest.raises(InputError, match=f"There are {len(verdicts)} rows for train, not both .*, and 3 more whose"):
        judge_data.check_both_kinds("train", verdicts, 3)
