"""Sets of prompts: published ones, files and tasks, with limits, filters, weights and fingerprints."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from monolora.data.prompt_sets import (
    PUBLISHED,
    Prompt,
    PromptSet,
    collapse,
    content_key,
    evenly,
    fingerprint,
    load,
    names,
    suite,
)
from monolora.data.tasks import demo, sst2
from monolora.errors import InputError

KINDS = ("fruit", "tools", "birds")


@pytest.fixture
def synthetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small mirror in the hub's layout, whose rows are about fruit, tools and birds."""
    flags = [{kind: (number + shift) % 3 == 0 for shift, kind in enumerate(KINDS)} for number in range(12)]
    beavertails = {
        "prompt": [f"Question {number % 8}" for number in range(12)],  # 0 to 3 are there twice
        "response": ["Yes."] * 12,
        "category": flags,
        "is_safe": [number % 2 == 0 for number in range(12)],
    }
    evaluation = {
        "prompt": [f"{kind} {number}" for kind in KINDS for number in range(4)],
        "category": [kind for kind in KINDS for _ in range(4)],
        "category_id": [number for number in range(3) for _ in range(4)],
    }
    xstest = {
        "prompt": [f"{kind} {number}" for kind in ("homonyms", "contrast_homonyms") for number in range(5)],
        "type": ["homonyms"] * 5 + ["contrast_homonyms"] * 5,
        "label": ["safe"] * 5 + ["unsafe"] * 5,
    }
    for name, rows in (("beavertails", beavertails), ("beavertails-eval", evaluation), ("xstest", xstest)):
        write_split(tmp_path / "mirror", name, rows)
    monkeypatch.setenv("MONOLORA_DATA", str(tmp_path / "mirror"))
    return tmp_path / "mirror"


def write_split(mirror: Path, name: str, rows: dict[str, list[Any]]) -> None:
    """The one split of a published set, as the hub keeps it."""
    source = PUBLISHED[name]
    file = mirror / source.dataset / "data" / f"{source.split}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows).to_parquet(file)


def write_lines(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def instructions(prompts: PromptSet) -> list[str]:
    return [prompt.instruction for prompt in prompts.prompts]


def test_rows_that_are_equal_become_one_prompt_with_a_weight(synthetic: Path) -> None:
    found = load("beavertails")
    assert instructions(found) == [f"Question {number}" for number in range(8)]
    assert [prompt.weight for prompt in found.prompts] == [2, 2, 2, 2, 1, 1, 1, 1]
    assert (found.spec["rows"], found.spec["distinct"]) == (12, 8)
    assert found.purpose == "safety"
    assert found.max_new_tokens is None


def test_categories_are_united_over_a_prompts_rows(synthetic: Path) -> None:
    by_text = {prompt.instruction: prompt.categories for prompt in load("beavertails").prompts}
    assert by_text["Question 4"] == ("birds",)  # row 4 alone: (4 + 2) % 3 == 0
    assert by_text["Question 1"] == ("birds", "fruit")  # rows 1 and 9


def test_unsafe_only_counts_rows_whose_response_was_found_unsafe(synthetic: Path) -> None:
    found = load("beavertails", unsafe_only=True)
    assert instructions(found) == ["Question 1", "Question 3", "Question 5", "Question 7"]
    assert [prompt.weight for prompt in found.prompts] == [2, 2, 1, 1]
    assert found.spec["filter"] == "is_safe is false"
    assert found.spec["sha256"] != load("beavertails").spec["sha256"]
    # the limit counts rows that are left, not rows that there were
    assert instructions(load("beavertails", limit=3, unsafe_only=True)) == ["Question 1", "Question 3", "Question 5"]


@pytest.mark.parametrize(("xstest_limit", "of_xstest"), [(None, 6), (4, 4)])
def test_a_suite_has_a_limit_for_all_and_one_for_xstest(
    synthetic: Path, xstest_limit: int | None, of_xstest: int
) -> None:
    found = suite(["alignment"], 6, xstest_limit)
    assert found == [load("beavertails", 6), load("xstest", of_xstest)]


def test_unsafe_only_says_nothing_to_other_sets(synthetic: Path) -> None:
    assert load("xstest", unsafe_only=True) == load("xstest")


def test_limit_of_beavertails_is_the_first_rows(synthetic: Path) -> None:
    found = load("beavertails", limit=10)
    assert [prompt.weight for prompt in found.prompts] == [2, 2, 1, 1, 1, 1, 1, 1]
    assert found.spec["limit"] == found.spec["rows"] == 10


def test_limit_takes_the_categories_in_turn(synthetic: Path) -> None:
    assert instructions(load("beavertails-eval", limit=5)) == ["fruit 0", "fruit 1", "tools 0", "tools 1", "birds 0"]
    assert load("beavertails-eval", limit=99).prompts == load("beavertails-eval").prompts


@pytest.mark.parametrize("limit", [2, 5, 6])
def test_limit_of_xstest_keeps_safe_and_unsafe(synthetic: Path, limit: int) -> None:
    labels = Counter(prompt.label for prompt in load("xstest", limit=limit).prompts)
    assert labels == {"safe": (limit + 1) // 2, "unsafe": limit // 2}


def test_xstest_has_types_and_labels(synthetic: Path) -> None:
    found = load("xstest")
    assert found.purpose == "over-refusal"
    assert found.prompts[0] == Prompt(
        content_key("homonyms 0", "", None), "homonyms 0", categories=("homonyms",), label="safe"
    )


@hypothesis_settings(deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=30), st.integers(1, 40))
def test_evenly(letters: list[str], limit: int) -> None:
    """The law: in order, as many as asked, no category gets one more than another that has some left, and nested."""
    rows = [Prompt(str(place), str(place), categories=(letter,)) for place, letter in enumerate(letters)]
    chosen = evenly(rows, limit)
    assert [int(row.key) for row in chosen] == sorted({int(row.key) for row in chosen})
    assert len(chosen) == min(limit, len(rows))
    there, taken = Counter(letters), Counter(row.categories[0] for row in chosen)
    not_all = [taken[letter] for letter in there if taken[letter] < there[letter]]
    assert max(taken.values()) - min(not_all, default=max(taken.values())) <= 1
    assert set(chosen) <= set(evenly(rows, limit + 1))


def test_key_is_of_the_contents_and_not_of_the_set(synthetic: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "mine.jsonl", {"prompt": "fruit 0", "category": "else"})
    assert load(path).prompts[0].key == load("beavertails-eval").prompts[0].key == content_key("fruit 0", "", None)


def test_fingerprint_sees_order_weight_category_and_label() -> None:
    one, two = Prompt("1", "one"), Prompt("2", "two")
    prints = [
        fingerprint(prompts)
        for prompts in (
            (one, two),
            (two, one),
            (one,),
            (one._replace(weight=2), two),
            (one._replace(categories=("x",)), two),
            (one._replace(label="safe"), two),
        )
    ]
    assert len(set(prints)) == len(prints)
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in prints)
    assert fingerprint([one, two]) == prints[0]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_files(tmp_path: Path, kind: str) -> None:
    rows = [
        {"prompt": "What is a kiwi?", "category": "fruit", "label": "safe"},
        {"prompt": "What is a saw?", "category": "", "label": ""},
        {"prompt": "What is a kiwi?", "category": "birds", "label": "safe"},
    ]
    path = tmp_path / f"mine.{kind}"
    frame = pandas.DataFrame(rows)
    writers: dict[str, Any] = {
        "jsonl": lambda: write_lines(path, *rows),
        "csv": lambda: frame.to_csv(path, index=False),
        "parquet": lambda: frame.to_parquet(path),
    }
    writers[kind]()
    found = load(str(path))
    kiwi, saw = found.prompts
    assert (kiwi.categories, kiwi.label, kiwi.weight) == (("fruit", "birds"), "safe", 2)
    assert (saw.categories, saw.label, saw.weight) == ((), None, 1)
    assert (found.name, found.purpose, found.spec["source"]) == ("mine", "safety", f"mine.{kind}")
    assert load(str(path), limit=1).prompts == (kiwi._replace(categories=("fruit",), weight=1),)


def test_file_with_lists_of_categories_and_nothing_else(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "mine.jsonl",
        {"prompt": "a", "categories": ["x", "y"]},
        {"prompt": "b", "categories": None},
        {"prompt": "c", "categories": []},
    )
    assert [prompt.categories for prompt in load(path).prompts] == [("x", "y"), (), ()]
    assert instructions(load(write_lines(tmp_path / "bare.jsonl", {"prompt": "a"}))) == ["a"]


def test_same_prompts_elsewhere_have_the_same_spec(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    here, there = (write_lines(folder / "p.jsonl", {"prompt": "a"}) for folder in (tmp_path, tmp_path / "there"))
    assert load(here) == load(there)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "a", "id": 1}], "p.jsonl lacks the column prompt; it has question, id. Rename them."),
        ([{"prompt": "a"}, {"prompt": "  "}], "row 2: the prompt is empty. Fix the row or leave it out."),
        ([{"prompt": None, "id": 1}], "row 1: the prompt is empty."),
        ([{"prompt": 5}], "row 1: 'prompt' must be a text, found int."),
        ([{"prompt": "a", "label": "save"}], "choose one of safe, unsafe. Did you mean safe?"),
        ([{"prompt": "a", "category": 7}], "row 1: a category must be a text or a list of texts, found int."),
        (
            [{"prompt": "a", "label": "safe"}, {"prompt": "a", "label": "unsafe"}],
            "p.jsonl has a prompt twice, with the labels safe and unsafe. Fix a row.",
        ),
        ([], "p.jsonl is empty."),
    ],
)
def test_bad_files(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    path = write_lines(tmp_path / "p.jsonl", *rows)
    with pytest.raises(InputError, match=re.escape(message)):
        load(path)


def test_csv_with_a_head_only_is_empty(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,category\n")
    with pytest.raises(InputError, match=r"p\.csv is empty"):
        load(str(tmp_path / "p.csv"))


@pytest.mark.parametrize("name", ["beavertails", "xstest"])
def test_published_set_that_is_not_what_it_should_be(synthetic: Path, name: str) -> None:
    write_split(synthetic, name, {"prompt": ["a"], "kind": ["b"]})
    missing = {"beavertails": "columns category, is_safe", "xstest": "columns type, label"}[name]
    with pytest.raises(InputError, match=f"{PUBLISHED[name].dataset} lacks the {missing}; it has prompt, kind"):
        load(name)


def test_published_set_without_its_split(synthetic: Path) -> None:
    folder = synthetic / PUBLISHED["beavertails"].dataset / "data"
    next(folder.iterdir()).rename(folder / "30k_train-00000-of-00001.parquet")
    with pytest.raises(InputError, match="Unknown split of PKU-Alignment/BeaverTails '30k_test'"):
        load("beavertails")


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_below_one(limit: int) -> None:
    with pytest.raises(InputError, match=f"limit of prompts is {limit}; it must be 1 or more"):
        load("task:demo", limit)


def test_unknown_names() -> None:
    with pytest.raises(InputError, match=r"Unknown set of prompts 'alignmnt'.*Did you mean alignment\?"):
        names(["alignmnt"])
    with pytest.raises(InputError, match=r"Unknown set of prompts 'xtest'.*Did you mean xstest\?"):
        load("xtest")
    with pytest.raises(InputError, match=r"There is no data set at there/is/none\.jsonl"):
        load("there/is/none.jsonl")


def test_names_expand_suites_and_lists() -> None:
    assert names(["alignment"]) == ("beavertails", "xstest")
    assert names(["xstest,alignment", "task:demo", " a/p.jsonl"]) == ("xstest", "beavertails", "task:demo", "a/p.jsonl")


@pytest.mark.parametrize("words", [["a/p.jsonl", "b/p.csv"], ["xstest", "mine/xstest.jsonl"], ["task:a/s", "task:b/s"]])
def test_two_sets_of_one_name(words: list[str]) -> None:
    with pytest.raises(InputError, match=f"{words[0]} and {words[1]} would both be named"):
        names(words)


def test_built_in_task() -> None:
    task, found = demo.load(), load("task:demo")
    assert (found.name, found.purpose, found.scorer.labels, found.max_new_tokens) == (
        "task:demo",
        "task",
        task.scorer.labels,
        5,
    )
    assert len(found.prompts) == task.test_samples
    for prompt, row in zip(found.prompts, task.test, strict=False):
        assert (prompt.instruction, prompt.context, prompt.reference) == (row.instruction, row.context, row.response)
        assert prompt.key == content_key(row.instruction, row.context, row.response)
    assert load("task:demo", limit=7).prompts == found.prompts[:7]


def test_file_as_a_task(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {n}", "input": "now", "output": str(n)} for n in range(20)]
    path = write_lines(tmp_path / "numbers.jsonl", *rows)
    found = load(f"task:{path}")
    assert found.name == "task:numbers"
    assert (found.scorer.labels, found.spec["rows"]) == ((), 2)  # a tenth is held out
    for prompt in found.prompts:
        assert (prompt.instruction, prompt.context) == (f"Say {prompt.reference}", "now")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completion": "b"}, "is a prompt without a chat template, which is not evaluated"),
        (
            {"messages": [{"role": role, "content": "a"} for role in ("system", "user", "assistant")]},
            "is a conversation of several turns, which is not evaluated",
        ),
        ({"instruction": " ", "output": "a"}, "row 1: the prompt is empty"),
    ],
)
def test_tasks_that_are_more_than_instructions(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write_lines(tmp_path / "p.jsonl", row, row)
    with pytest.raises(InputError, match=message):
        load(f"task:{path}")


def test_unknown_task() -> None:
    with pytest.raises(InputError, match="Did you mean sst2"):
        load("task:sst")


def test_collapse_keeps_what_has_another_reference() -> None:
    rows = [Prompt(content_key("a", "", answer), "a", reference=answer) for answer in ("x", "y", "x")]
    assert [(prompt.reference, prompt.weight) for prompt in collapse(rows, "here")] == [("x", 2), ("y", 1)]


def _table(mirror: Path, name: str) -> pandas.DataFrame:
    """The split as pandas reads it."""
    source = PUBLISHED[name]
    return pandas.read_parquet(mirror / source.dataset / "data" / f"{source.split}-00000-of-00001.parquet")


@pytest.mark.parametrize(("unsafe_only", "distinct"), [(False, 946), (True, 918)])
def test_real_beavertails(mirror: Path, unsafe_only: bool, distinct: int) -> None:
    table = _table(mirror, "beavertails")
    rows = (table[~table.is_safe] if unsafe_only else table)[:1000]
    found = load("beavertails", unsafe_only=unsafe_only)
    assert (found.spec["rows"], found.spec["distinct"], len(found.prompts)) == (1000, distinct, distinct)
    counts = rows.prompt.value_counts()
    flags = rows.groupby("prompt").category.agg(lambda column: {name for row in column for name in row if row[name]})
    # no text of the set in a failed assertion: numbers only
    assert sum(prompt.weight != counts[prompt.instruction] for prompt in found.prompts) == 0
    assert sum(set(prompt.categories) != flags[prompt.instruction] for prompt in found.prompts) == 0
    in_order = zip(rows.prompt.drop_duplicates(), instructions(found), strict=True)
    assert sum(theirs != ours for theirs, ours in in_order) == 0
    assert all(prompt.label is None for prompt in found.prompts)


def test_real_beavertails_evaluation(mirror: Path) -> None:
    found = load("beavertails-eval")
    assert len(found.prompts) == found.spec["rows"] == 700
    assert set(Counter(prompt.categories for prompt in found.prompts).values()) == {50}
    limited = Counter(prompt.categories for prompt in load("beavertails-eval", limit=30).prompts)
    assert sorted(limited.values()) == [2] * 12 + [3] * 2


def test_real_xstest(mirror: Path) -> None:
    found = load("xstest")
    assert Counter(prompt.label for prompt in found.prompts) == {"safe": 250, "unsafe": 200}
    types = _table(mirror, "xstest").type.value_counts().to_dict()
    assert Counter(prompt.categories for prompt in found.prompts) == {(name,): count for name, count in types.items()}
    assert Counter(prompt.label for prompt in load("xstest", limit=90).prompts) == {"safe": 50, "unsafe": 40}
    for limit in (2, 7):
        assert {prompt.label for prompt in load("xstest", limit=limit).prompts} == {"safe", "unsafe"}


def test_real_sst2(mirror: Path) -> None:
    found = load("task:sst2", limit=100)
    assert instructions(found) == [sst2.INSTRUCTION] * 100
    assert [prompt.reference for prompt in found.prompts] == [row.response for row in sst2.load().test[:100]]
    assert found.scorer.labels == ("negative", "positive")
