"""Texts and labels by name: what counts, what is shared, and what is said where there are no labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from monolora.data.chat_template import prompt_ids, split_at_answer
from monolora.data.contrast_pairs import contrast_pairs
from monolora.errors import InputError
from monolora.eval.explain.text_sets import LONGEST, load, load_kept
from monolora.keep.anchors import read_prompts
from monolora.run_record import write
from tests.support.tiny_chat import CHAT_TEMPLATE, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    made = train_tokenizer()
    made.chat_template = CHAT_TEMPLATE
    return made


def _file(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_task_has_its_labels_and_its_held_out_prompts(tokenizer: PreTrainedTokenizerFast) -> None:
    found = load("demo", 12)
    assert found.labels == ("negative", "positive")
    assert found.task_labels == ("negative", "positive")
    assert [found.labels[group] for group in found.groups] == [example.response for example in found.examples]
    assert found.ids(3, tokenizer) == prompt_ids(found.examples[3], tokenizer)
    assert not found.is_safety
    assert found.note == ""


def test_the_beginning_that_all_texts_share_does_not_count(tokenizer: PreTrainedTokenizerFast) -> None:
    found = load("demo", 40)
    texts = list(found.texts(tokenizer, found.groups))
    all_ids = [prompt_ids(example, tokenizer) for example in found.examples]
    shared = next(place for place in range(99) if len({ids[place] for ids in all_ids}) > 1)
    assert shared > 5
    assert {text.start for text in texts} == {shared}
    assert [text.ids for text in texts] == all_ids
    ending = next(place for place in range(99) if len({ids[-1 - place] for ids in all_ids}) > 1)
    assert ending > 2
    assert {len(text.ids) - text.stop for text in texts} == {ending}
    last = list(load("demo-last", 40).texts(tokenizer, found.groups))
    assert [(text.start, text.stop) for text in last] == [(len(ids) - 1, len(ids)) for ids in all_ids]
    assert [text.number for text in texts] == list(range(40))


def test_a_text_that_is_its_beginning_alone_counts_with_its_last_token(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = load(_file(tmp_path, [{"text": "the same"}, {"text": "the same"}]), 9)
    for text in found.texts(tokenizer, found.groups):
        assert (text.start, text.stop) == (len(text.ids) - 1, len(text.ids))


def test_answers_count_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    found = load("demo-answers", 5)
    assert found.part == "answers"
    for text, example in zip(found.texts(tokenizer, found.groups), found.examples, strict=True):
        context, answer = split_at_answer(example, tokenizer)
        assert text.ids == context + answer
        # beginning at the token in which two answers differ at the earliest, never before the answer
        assert len(context) <= text.start < len(text.ids)


def test_labels_of_a_column_and_texts_that_are_too_long(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"prompt": "word " * (1500 if k == 2 else 3), "label": label} for k, label in enumerate(["b", "a", None, "b"])
    ]
    found = load(_file(tmp_path, rows), 9)
    assert found.labels == ("a", "b")
    assert list(found.groups) == [1, 0, -1, 1]
    assert len(found.ids(2, tokenizer)) == LONGEST
    other = load(_file(tmp_path, [{"prompt": "x", "kind": 1}, {"prompt": "y", "kind": 2}]), 9, label_column="kind")
    assert other.labels == ("1", "2")
    assert other.fingerprint() != found.fingerprint() == load(_file(tmp_path, rows), 9).fingerprint()


def test_a_long_prompt_is_cut_from_the_left(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Its end is where the model decides; with answers, as much of the prompt as leaves room for them."""
    path = _file(tmp_path, [{"prompt": "word " * 1500 + "end", "response": "yes"}, {"prompt": "x", "response": "no"}])
    whole = prompt_ids(load(path, 9).examples[0], tokenizer)
    assert len(whole) > LONGEST
    assert load(path, 9).ids(0, tokenizer) == whole[-LONGEST:]
    last = next(load(f"{path}-last", 9).texts(tokenizer, [-1, -1]))
    assert (last.ids, last.start, last.stop) == (whole[-LONGEST:], LONGEST - 1, LONGEST)
    example = load("demo", 1).examples[0]
    found = replace(load("demo-answers", 1), examples=[example._replace(context="word " * 1500)])
    context, answer = split_at_answer(found.examples[0], tokenizer)
    (text,) = found.texts(tokenizer, [-1])
    assert text.ids == (context + answer)[-LONGEST:]
    assert text.start == LONGEST - len(answer)


def test_a_name_that_ends_like_a_part_is_found(tmp_path: Path) -> None:
    path = Path(_file(tmp_path, [{"text": "a"}, {"text": "b"}]))
    moved = path.rename(tmp_path / "texts-last.jsonl")
    assert load(str(moved), 9).part == "text"
    assert load(str(moved) + "-last", 9).part == "last"


def test_a_text_without_tokens_is_refused(tmp_path: Path) -> None:
    bare = train_tokenizer()
    bare.chat_template = "{{ messages[0]['content'] }}"
    found = load(_file(tmp_path, [{"prompt": "x"}, {"prompt": " "}]), 9)
    blank = replace(found, examples=[found.examples[0], found.examples[1]._replace(instruction="")])
    with pytest.raises(InputError, match="text 2 has no tokens"):
        list(blank.texts(bare, [-1, -1]))


def test_safety_sets_are_known_by_their_ids_too(mirror: Path) -> None:
    assert load("walledai/XSTest", 4).is_safety


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        ([{"prompt": "x"}, {"prompt": "y"}], "has no column 'label' (it has prompt)"),
        ([{"prompt": "x", "label": "a"}] * 3, "The label has 1 values"),
        ([{"prompt": "x", "label": f"{k}"} for k in range(60)], "The label has 60 values"),
    ],
)
def test_where_there_are_no_labels_it_is_said(tmp_path: Path, rows: list[dict[str, Any]], note: str) -> None:
    found = load(_file(tmp_path, rows), 100)
    assert found.labels == ()
    assert set(found.groups) == {-1}
    assert note in found.note
    assert "eft out" in found.note or "need 2 to 50" in found.note


def test_a_data_set_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needed are"):
        load(_file(tmp_path, [{"number": 3}]), 9)
    with pytest.raises(InputError, match="no data set"):
        load("./nothing.jsonl", 9)


@pytest.mark.parametrize(
    ("name", "labels"),
    [("beavertails-eval", 14), ("xstest", 2), ("beavertails-answers", 2), ("beavertails", None)],
)
def test_safety_sets_have_categories_or_verdicts(mirror: Path, name: str, labels: int | None) -> None:
    found = load(name, 140)
    assert found.is_safety
    assert len(found.labels) == labels if labels else len(found.labels) > 5
    assert (found.part == "answers") == (name == "beavertails-answers")
    assert not found.task_labels


def test_embedded_sets_have_their_labels() -> None:
    pairs = load("contrast-pairs", 40)
    assert pairs.labels == ("safe", "unsafe")
    assert pairs.is_safety
    assert {len(pairs.examples), len(pairs.groups)} == {40}
    by_prompt = {row.prompt: row.label for row in contrast_pairs()}
    assert [pairs.labels[group] for group in pairs.groups] == [
        by_prompt[example.instruction] for example in pairs.examples
    ]


def test_kept_prompts_are_those_that_are_named(tmp_path: Path) -> None:
    named = load_kept(str(tmp_path), ("refusals", "chat"), 10)
    assert named is not None
    assert named.name == "kept"
    assert named.is_safety
    assert [example.instruction for example in named.examples] == [
        example.instruction for example in read_prompts(("refusals", "chat"), 10).examples
    ]
    assert load_kept(str(tmp_path), (), 10) is None


@pytest.mark.parametrize(("keep", "words"), [(["silence:1"], ["refusals"]), (["none", "kl:0.5"], None)])
def test_kept_prompts_are_those_of_the_adapters_run(tmp_path: Path, keep: list[str], words: list[str] | None) -> None:
    config = {
        "model": "m", "dtype": None, "load_in_4bit": False, "load_in_8bit": False, "dataset": "demo",
        "dataset_config": None, "dataset_train_split": "train", "dataset_test_split": "test", "max_train_samples": None,
        "max_eval_samples": None, "eval_max_new_tokens": None, "per_device_eval_batch_size": 1, "drop_columns": None,
        "allow_empty_answers": False, "keep": keep, "keep_prompts": words, "keep_samples": 30, "keep_answer_tokens": 8,
    }  # fmt: skip
    record: Any = {"config": config, "results": {"before": None, "after": None}}
    write(tmp_path, record)
    found = load_kept(str(tmp_path), (), 5)
    assert found is not None
    prompts = read_prompts(words or ("chat", "refusals"), 30).examples
    assert [example.instruction for example in found.examples] == [
        prompts[number].instruction for number in (0, 7, 14, 22, 29)
    ]
    assert "trained to keep" in found.note
    write(tmp_path, record | {"config": config | {"keep": ["none"]}})
    assert load_kept(str(tmp_path), (), 5) is None
