"""Which text a merge is fitted to, and which other text it is verified on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from monolora.data.chat_template import prompt_ids, split_at_answer
from monolora.data.scoring import FreeText
from monolora.data.tasks import Example, Task, demo
from monolora.errors import InputError
from monolora.keep.anchors import Anchor, divided
from monolora.recipes.calibration_data import ANCHORS, LONGEST, batches, choose, run_task, sources


def _task(name: str, train: list[str], test: list[str]) -> Task:
    examples = ([Example(text, "", verbatim=True) for text in texts] for texts in (train, test))
    return Task(name=name, train=next(examples), test=next(examples), scorer=FreeText())


def _numbers(start: int, stop: int) -> list[str]:
    return [f"{k} times {k * 7919 % 997}" for k in range(start, stop)]


def test_no_text_is_on_both_sides(plain_tokenizer: PreTrainedTokenizerBase) -> None:
    """A data set that repeats a training row among its test rows."""
    task = _task("a", _numbers(0, 10), _numbers(5, 15))
    chosen = choose([task], [task], plain_tokenizer, 10_000, 10_000)
    assert len(chosen.calibration["a"]) == 10
    assert len(chosen.held_out["a"]) == 5
    assert not {tuple(row) for row in chosen.calibration["a"]} & {tuple(row) for row in chosen.held_out["a"]}


def test_nor_where_another_data_set_repeats_it(plain_tokenizer: PreTrainedTokenizerBase) -> None:
    one, other = _task("a", _numbers(0, 10), _numbers(10, 12)), _task("b", _numbers(20, 30), _numbers(0, 12))
    chosen = choose([one], [other], plain_tokenizer, 10_000, 10_000)
    assert len(chosen.held_out["b"]) == 2


def test_texts_that_are_alike_after_they_are_cut(plain_tokenizer: PreTrainedTokenizerBase) -> None:
    long = "words " * 2 * LONGEST
    task = _task("a", [long], [long + "and more", "another"])
    chosen = choose([task], [task], plain_tokenizer, 10_000, 10_000)
    assert [len(row) for row in chosen.calibration["a"]] == [LONGEST]
    assert len(chosen.held_out["a"]) == 1


def test_nothing_left_to_verify_on(plain_tokenizer: PreTrainedTokenizerBase) -> None:
    task = _task("a", _numbers(0, 10), _numbers(0, 10))
    with pytest.raises(InputError, match=r"no text to verify the merge on.*Give one with --verify-on"):
        choose([task], [task], plain_tokenizer, 10_000, 10_000)


def test_data_sets_get_equal_parts(plain_tokenizer: PreTrainedTokenizerBase) -> None:
    tasks = [_task("a", _numbers(0, 200), _numbers(200, 300)), _task("b", _numbers(300, 500), _numbers(500, 600))]
    chosen = choose(tasks, tasks, plain_tokenizer, 400, 100)
    longest = max(len(row) for rows in chosen.calibration.values() for row in rows)
    for texts, tokens in ((chosen.calibration, 200), (chosen.held_out, 50)):
        assert texts.keys() == {"a", "b"}
        assert all(tokens <= sum(map(len, rows)) < tokens + longest for rows in texts.values())


def test_anchors_are_one_more_data_set(plain_tokenizer: PreTrainedTokenizerBase) -> None:
    """An equal part of the calibration; held-out ones beside the text, which they change nothing of."""
    task, other = _task("a", _numbers(0, 200), _numbers(200, 300)), _task("b", _numbers(300, 500), _numbers(500, 600))
    made = [Anchor([index] * 4, [index] * 2) for index in range(10, 110)]
    anchors = divided(made)
    chosen = choose([task, other], [task, other], plain_tokenizer, 600, 100, anchors)
    assert list(chosen.calibration) == ["a", "b", ANCHORS]
    assert all(200 <= sum(map(len, rows)) < 230 for rows in chosen.calibration.values())
    assert chosen.calibration[ANCHORS] == [a.context + a.answer for a in anchors.train[:34]]
    assert chosen.anchors == [a.context + a.answer for a in anchors.held_out[:9]]
    assert chosen.held_out == choose([task, other], [task, other], plain_tokenizer, 600, 100).held_out
    verified = choose([], [task], plain_tokenizer, 0, 100, anchors)
    assert verified.calibration == {}
    assert len(verified.anchors) == 10


def test_without_calibration(plain_tokenizer: PreTrainedTokenizerBase) -> None:
    task = _task("a", _numbers(0, 10), _numbers(0, 10))
    chosen = choose([], [task], plain_tokenizer, 0, 10_000)
    assert chosen.calibration == {}
    assert len(chosen.held_out["a"]) == 10


def test_a_data_set_without_a_row_to_spare_is_left_out(plain_tokenizer: PreTrainedTokenizerBase) -> None:
    """And the other one gets no more for it: numbers stay comparable."""
    tasks = [_task("a", _numbers(0, 10), _numbers(0, 10)), _task("b", _numbers(20, 30), _numbers(30, 60))]
    chosen = choose(tasks, tasks, plain_tokenizer, 10_000, 100)
    assert chosen.held_out.keys() == {"b"}
    assert sum(map(len, chosen.held_out["b"])) < 100


def test_rows_are_read_as_in_training(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    row = demo.load().train[0]
    asked = row._replace(response="")
    task = Task(name="a", train=[row], test=[asked], scorer=FreeText())
    chosen = choose([task], [task], chat_tokenizer, 1000, 1000)
    split = split_at_answer(row, chat_tokenizer)
    assert chosen.calibration["a"] == [split.context + split.answer]
    assert chat_tokenizer.eos_token_id in split.answer
    assert chosen.held_out["a"] == [prompt_ids(asked, chat_tokenizer)]


def test_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MONOLORA_DATA", raising=False)
    task = _task("a", ["x"], ["y"])
    assert sources(task, None) == [task]
    assert sources(None, None) == []
    assert [each.name for each in sources(task, "demo")] == ["demo"]
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (found,) = sources(task, str(tmp_path / "rows.jsonl"))
    assert len(found.train + found.test) == 2
    with pytest.raises(InputError, match="There is no data set at"):
        sources(task, str(tmp_path / "nowhere.jsonl"))


def test_general_text_comes_from_the_mirror(mirror: Path) -> None:
    task = _task("a", ["x"], ["y"])
    assert [each.name for each in sources(task, None)] == ["a", "dolly"]
    assert [each.name for each in sources(None, None)] == ["dolly"]
    dolly = _task("dolly", ["x"], ["y"])
    assert sources(dolly, None) == [dolly]


def test_the_rows_of_a_run() -> None:
    config: dict[str, Any] = {
        "dataset": "demo", "dataset_config": None, "dataset_train_split": "train", "dataset_test_split": "test",
        "max_train_samples": 7, "max_eval_samples": None,
    }  # fmt: skip
    task, whole = run_task({"config": config}), demo.load()
    assert (task.train, task.test) == (whole.train[:7], whole.test[:200])
    assert task.tested == whole.test
    assert (task.name, task.scorer, task.max_new_tokens) == ("demo", whole.scorer, whole.max_new_tokens)


def test_batches() -> None:
    rows = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11]]
    made = batches(rows, 0, 2, torch.device("cpu"))
    assert [batch["input_ids"].tolist() for batch in made] == [
        [[4], [11]],
        [[5, 6, 0], [1, 2, 3]],
        [[7, 8, 9, 10]],
    ]
    assert [batch["attention_mask"].tolist() for batch in made] == [
        [[1], [1]],
        [[1, 1, 0], [1, 1, 1]],
        [[1, 1, 1, 1]],
    ]
